"""Held-out loss and expert use of a model over rows of text.

Shapes: B rows, T positions, L layers, E experts.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.decoder import Decoder
from models.experts import ALL_EXPERTS, Activation, SparseExperts
from models.language_model import IGNORED, LanguageModel, SequenceLoss
from models.tokenizer import Row, stack_rows

_LARGEST = 700.0  # exp of more overflows


@dataclass(frozen=True)
class Evaluation:
    """Held-out figures of one text collection; those of several add up.

    Attributes:
        nats: summed cross-entropy of all targets. tokens: targets, at least 1.
        text_bytes: bytes that they cover. experts: experts used, summed over targets and averaged
            over layers; 0 for a model without sparse layers.

    """

    nats: float
    tokens: int
    text_bytes: int
    experts: float

    def __add__(self, other: "Evaluation") -> "Evaluation":
        return Evaluation(
            self.nats + other.nats,
            self.tokens + other.tokens,
            self.text_bytes + other.text_bytes,
            self.experts + other.experts,
        )

    @property
    def nats_per_token(self) -> float:
        """Mean cross-entropy over all targets."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """The exponential of that; infinite where a float cannot hold it."""
        return math.exp(self.nats_per_token) if self.nats_per_token < _LARGEST else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers."""
        return self.nats / math.log(2) / max(self.text_bytes, 1)

    @property
    def experts_per_token(self) -> float:
        """Mean number of experts that a token uses in a sparse layer."""
        return self.experts / self.tokens


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    rows: Sequence[Row],
    batch: int = 64,
    activation: Activation = ALL_EXPERTS,
    done: Callable[[int], None] | None = None,
) -> Evaluation:
    """Return the figures of `model` over `rows`.

    Args:
        model: any language model, wherever it lies.
        rows: at least one, each within the model's positions.
        batch: most rows of a pass; rows of like length share one.
        activation: how many experts each token uses; ours alone have a choice.
        done: is told the number of rows that are done, after each pass.

    Raises:
        ValueError: no rows, or an activation for a model without sparse layers of ours.

    """
    if not rows:
        raise ValueError("Expected rows to evaluate, got none. Hold out more records.")
    device = next(model.parameters()).device
    by_length = sorted(rows, key=lambda row: len(row.ids))
    nats, tokens, experts = 0.0, 0, 0.0
    for begin in range(0, len(rows), batch):
        part = by_length[begin : begin + batch]
        stacked = stack_rows(part, len(part[-1].ids) - 1)
        token_BT, target_BT = (tensor.to(device) for tensor in stacked)
        with _counting_experts(model, target_BT != IGNORED) as counts:
            loss = _loss(model, token_BT, target_BT, activation)
        nats += float(loss.total_B.double().sum())
        tokens += int(loss.tokens_B.sum())
        experts += sum(counts) / max(len(counts), 1)
        if done is not None:
            done(begin + len(part))
    return Evaluation(nats, tokens, sum(row.target_bytes for row in rows), experts)


@torch.no_grad()
def row_nats(model: LanguageModel, rows: Sequence[Row], batch: int = 64) -> tuple[Tensor, Tensor]:
    """Return each row's summed cross-entropy in nats and its number of targets, fp64 [rows].

    Args:
        model: any language model. rows: within the model's positions, in any order.
        batch: most rows of a pass; rows of like length share one.

    """
    nats, tokens = torch.zeros(2, len(rows), dtype=torch.float64)
    order = sorted(range(len(rows)), key=lambda at: len(rows[at].ids))
    for begin in range(0, len(rows), batch):
        places = order[begin : begin + batch]
        part = [rows[at] for at in places]
        loss = model.loss(*stack_rows(part, len(part[-1].ids) - 1))
        nats[places], tokens[places] = loss.total_B.double(), loss.tokens_B.double()
    return nats, tokens


def _loss(
    model: LanguageModel, token_BT: Tensor, target_BT: Tensor, activation: Activation
) -> SequenceLoss:
    if activation == ALL_EXPERTS:
        return model.loss(token_BT, target_BT)
    if isinstance(model, Decoder):
        return model.loss(token_BT, target_BT, activation=activation)
    raise ValueError(
        "Expected a model of the Arion family to choose the number of experts, got "
        f"{type(model).__name__}. Leave the choice out."
    )


@contextmanager
def _counting_experts(model: nn.Module, counted_BT: Tensor) -> Iterator[list[float]]:
    """Collect, per sparse layer that is called inside, the experts that counted positions use."""
    counts: list[float] = []

    def count(_module: nn.Module, _inputs: Any, output: Any) -> None:
        _, routing = output
        counts.append(float((routing.active() * counted_BT).sum(dtype=torch.float64)))

    layers = [module for module in model.modules() if isinstance(module, SparseExperts)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def expert_shares(model: Decoder, rows: Sequence[Row], length: int) -> Tensor:
    """Return the share of tokens' router weight each expert receives, fp32 [L, E]."""
    token_BT, target_BT = stack_rows(rows, length)
    counted_BT1 = (target_BT != IGNORED)[..., None]
    shares = []
    for routing in model.hidden(token_BT)[1]:
        total_E = (routing.spread(routing.weight_BTK) * counted_BT1).sum((0, 1))
        shares.append(total_E / total_E.sum())
    return torch.stack(shares)
