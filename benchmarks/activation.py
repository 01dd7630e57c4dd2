"""One checkpoint for every number of active experts: held-out loss against mean active experts.

The same small sparse model is trained from the same seed and budget of public text: with all k
experts per token in every step; with k_max and tau drawn at random in every other step; and with a
fixed k of 1 and of 2. Every checkpoint is evaluated at k_max = 1..k and over tau.

Value: the loss of the checkpoint trained with random activation. Peer: the one trained with all
experts, at the same setting. Limit: the one trained for that k alone (rows with a k only).

Text: the English books of the shared data folder (ARION_SHARED, default ../shared).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from arion.institutions import read_public
from benchmarks.harness import Row, context, main
from models.config import ModelConfig
from models.decoder import Decoder
from models.experts import Activation
from models.language_model import IGNORED
from models.pretrain import token_stream, warm_up
from models.tokenizer import Row as TextRow
from models.tokenizer import Tokenizer, stack_rows
from models.training_settings import WarmUp

CONFIG = ModelConfig(
    vocab_size=4096, hidden_size=128, layers=4, heads=4, kv_heads=2, head_dim=32, experts=8,
    experts_per_token=4, expert_hidden_size=96, max_positions=128,
)  # fmt: skip
MOST = CONFIG.experts_per_token
ALONE = (1, 2)  # smaller k that have a checkpoint of their own
THRESHOLDS = (0.2, 0.4, 0.6, 0.8, 1.0)
HELD_OUT_EVERY = 20
HELD_OUT_ROWS = 600
SEED = 0


@dataclass(frozen=True)
class Text:
    """Public tokens to train on, and rows of documents that are not among them."""

    tokenizer: Tokenizer
    stream: torch.Tensor
    heldout: Sequence[TextRow]


def run(quick: bool) -> Iterator[Row]:
    """Yield the loss at every setting, of all checkpoints."""
    torch.set_num_threads(1)
    text = read_text()
    settings = WarmUp(steps=20 if quick else 600, batch=16, learning_rate=4e-3)
    all_experts = train(text, settings, CONFIG)
    varied = train(text, settings.model_copy(update={"random_activation": True}), CONFIG)
    for k in range(1, MOST + 1):
        alone = all_experts if k == MOST else None
        if k in ALONE:
            alone = train(text, settings, CONFIG.model_copy(update={"experts_per_token": k}))
        yield row(f"k = {k}", Activation(k), text, settings, (varied, all_experts, alone))
    for threshold in THRESHOLDS:
        activation = Activation(MOST, threshold)
        yield row(f"tau = {threshold}", activation, text, settings, (varied, all_experts, None))


def read_text() -> Text:
    """Read the books; every twentieth part of a book is held out."""
    root = Path(__file__).parents[1] / os.environ.get("ARION_SHARED", "../shared")
    texts = read_public([root / "data" / "ebooks"])
    training = [text for place, text in enumerate(texts) if place % HELD_OUT_EVERY]
    tokenizer = Tokenizer.train(training, CONFIG.vocab_size)
    rows = tokenizer.rows(texts[::HELD_OUT_EVERY], CONFIG.max_positions, 8)
    heldout = [row for found in rows for row in found][:HELD_OUT_ROWS]
    return Text(tokenizer, token_stream(tokenizer, training), heldout)


def train(text: Text, settings: WarmUp, config: ModelConfig) -> Decoder:
    """Train one checkpoint; seed and budget are the same for all."""
    model = Decoder(config, torch.Generator().manual_seed(SEED))
    warm_up(model, text.stream, settings, torch.Generator().manual_seed(SEED + 1), _told(settings))
    return model


def _told(settings: WarmUp) -> Callable[[int, float], None]:
    def progress(step: int, loss: float) -> None:
        if step % 200 == 0:
            print(f"step {step} of {settings.steps}: {loss:.3f} nats per token", flush=True)

    return progress


def row(
    name: str,
    activation: Activation,
    text: Text,
    settings: WarmUp,
    checkpoints: tuple[Decoder, Decoder, Decoder | None],
) -> Row:
    """Evaluate the checkpoints at one setting."""
    varied, all_experts, alone = checkpoints
    loss, active = heldout_loss(varied, activation, text)
    usual, usual_active = heldout_loss(all_experts, activation, text)
    limit = None if alone is None else heldout_loss(alone, activation, text)[0]
    return Row(
        f"held-out loss, {name}", loss, "nats/token",
        "trained with all experts", usual, usual / loss,
        None if limit is None else "trained for this k alone", limit,
        None if limit is None else loss / limit,
        context(
            ["torch"], mean_active=active, mean_active_peer=usual_active, seed=SEED,
            config=CONFIG.model_dump(), warm_up=settings.model_dump(),
            heldout_rows=len(text.heldout),
        ),
    )  # fmt: skip


@torch.no_grad()
def heldout_loss(model: Decoder, activation: Activation, text: Text) -> tuple[float, float]:
    """Return (nats per token, mean active experts over layers and tokens)."""
    nats = tokens = active = 0.0
    for begin in range(0, len(text.heldout), 50):
        batch = stack_rows(text.heldout[begin : begin + 50], CONFIG.max_positions)
        loss = model.loss(*batch, activation=activation)
        counted_BT = batch[1] != IGNORED
        routings = model.hidden(batch[0], activation)[1]
        active += sum(float((r.active() * counted_BT).sum()) for r in routings) / len(routings)
        nats += float(loss.total_B.double().sum())
        tokens += float(loss.tokens_B.sum())
    return nats / tokens, active / tokens


if __name__ == "__main__":
    main(run)
