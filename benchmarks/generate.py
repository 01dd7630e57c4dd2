"""How fast text is decoded: tokens per second after the prompt, greedy, fp32, one thread.

Peer: `transformers.generate` of the same folder. Limit: what memory would allow if nothing took
time but reading, once per step, all weights but those of experts that no token of the step chose.

Time is CPU time between the first and the last new token of a batch of texts, ours and the peer's
in turn; a rate is the median, a ratio the median over neighbours. Weights are random.

Shapes: B sequences, T positions, L layers, K experts per token.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Row, context, main, paired_ratio
from models.checkpoint import load_model, save_model
from models.config import ModelConfig, preset
from models.counts import parameter_counts
from models.decoder import Decoder
from models.generate import Settings, stream
from models.tokenizer import Tokenizer

OURS, PEER, LIMIT = "arion", "transformers.generate", "weights read once"
TEXT = "The patient was seen on ward seven at ten; blood pressure 120 over 80. "
PROMPT_CHARACTERS = 60
BATCHES = (1, 8)
STREAM_BYTES = 256 * 2**20
# Shapes of series 1.2 (few broad experts) and 1.1 (many narrow ones), made small.
SIZES = {
    "tiny-15M": preset("tiny"),
    "broad-145M": ModelConfig(
        vocab_size=16384, hidden_size=768, layers=12, heads=12, kv_heads=4, head_dim=64, experts=8,
        experts_per_token=2, expert_hidden_size=512, max_positions=512,
    ),
    "narrow-168M": ModelConfig(
        vocab_size=16384, hidden_size=512, layers=12, heads=8, kv_heads=2, head_dim=64, experts=64,
        experts_per_token=8, expert_hidden_size=128, max_positions=512,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Text:
    """One batch of generated text.

    Attributes:
        token_BT: the new tokens. seconds: from the first to the last of them.

    """

    token_BT: Tensor
    seconds: float


def run(quick: bool) -> Iterator[Row]:
    """Yield a row per size and batch."""
    torch.set_num_threads(1)
    bandwidth = stream_bandwidth()
    with tempfile.TemporaryDirectory() as folder:
        for size, config in SIZES.items():
            if quick and size != "tiny-15M":
                continue
            path = write_random(config, Path(folder, size))
            for batch in BATCHES:
                yield row(size, path, batch, bandwidth, 2 if quick else 5)


def row(size: str, path: Path, batch: int, bandwidth: float, repetitions: int) -> Row:
    """Time both on one folder and batch."""
    model, tokenizer = load_model(path)
    new = 64
    prompts = [TEXT[index : index + PROMPT_CHARACTERS] for index in range(batch)]
    steps = {
        OURS: lambda: decode(model, tokenizer, prompts, new),
        PEER: transformers_decoder(path, tokenizer, prompts, new),
    }
    texts = in_turn(steps, repetitions)
    seconds = {name: [text.seconds for text in each] for name, each in texts.items()}
    rates = {name: batch * (new - 1) / statistics.median(each) for name, each in seconds.items()}
    ours = texts[OURS][0].token_BT
    limit = batch * bandwidth / bytes_per_step(model, tokenizer, prompts, ours)
    spread = sorted(p / o for o, p in zip(seconds[OURS], seconds[PEER], strict=True))
    details = {
        "size": size, "batch": batch, "new_tokens": new, "repetitions": repetitions,
        "prompt_characters": PROMPT_CHARACTERS, "stream_gb_per_s": round(bandwidth / 1e9, 2),
        "ratio_to_peer_range": [round(spread[0], 3), round(spread[-1], 3)],
        "equal_tokens": float((ours == texts[PEER][0].token_BT).double().mean()),
    }  # fmt: skip
    return Row(
        f"decode, {size}, batch {batch}", rates[OURS], "tokens/s", PEER, rates[PEER],
        paired_ratio(seconds[PEER], seconds[OURS]), LIMIT, limit, rates[OURS] / limit,
        context(["torch", "transformers"], threads=torch.get_num_threads(), config=details),
    )  # fmt: skip


def in_turn(steps: dict[str, Callable[[], Text]], repetitions: int) -> dict[str, list[Text]]:
    """Run the steps A B A B ..., after one turn that does not count."""
    texts: dict[str, list[Text]] = {name: [] for name in steps}
    for turn in range(repetitions + 1):
        for name, step in steps.items():
            text = step()
            if turn:
                texts[name].append(text)
    return texts


def decode(model: Decoder, tokenizer: Tokenizer, prompts: Sequence[str], new: int) -> Text:
    """Generate with our decoder; a random model ends no text early, or this fails."""
    times, tokens = [], []
    for count, piece in enumerate(stream(model, tokenizer, prompts, Settings(new)), 1):
        tokens.append(piece.token)
        if count % len(prompts) == 0:
            times.append(time.process_time())
    return Text(torch.tensor(tokens).view(new, len(prompts)).T, times[-1] - times[0])


def transformers_decoder(
    path: Path, tokenizer: Tokenizer, prompts: Sequence[str], new: int
) -> Callable[[], Text]:
    """Return the same job for transformers; its stopping criterion looks at the clock."""
    from transformers import AutoModelForCausalLM, StoppingCriteria  # noqa: PLC0415

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    ids = [[tokenizer.begin_of_text_id, *each] for each in tokenizer.encode(prompts)]
    longest = max(map(len, ids))
    token_BT = torch.tensor([[0] * (longest - len(each)) + each for each in ids])
    mask_BT = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in ids])
    times: list[float] = []

    class Clock(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            times.append(time.process_time())
            return torch.zeros(len(input_ids), dtype=torch.bool)

    def step() -> Text:
        times.clear()
        output_BT = model.generate(
            token_BT, attention_mask=mask_BT, max_new_tokens=new, do_sample=False, pad_token_id=0,
            stopping_criteria=[Clock()],
        )  # fmt: skip
        return Text(output_BT[:, longest:], times[-1] - times[0])

    return step


@torch.no_grad()
def bytes_per_step(
    model: Decoder, tokenizer: Tokenizer, prompts: Sequence[str], token_BT: Tensor
) -> float:
    """Mean bytes of fp32 weights that a step must read, by the routing of the texts themselves."""
    config, steps = model.config, token_BT.shape[1] - 1
    choices = []
    for prompt, new in zip(tokenizer.encode(prompts), token_BT.tolist(), strict=True):
        ids = [tokenizer.begin_of_text_id, *prompt, *new[:-1]]
        routings = model.hidden(torch.tensor([ids]))[1]
        choices.append(torch.stack([r.expert_BTK[0, -steps:] for r in routings]))
    chosen_LTBK = torch.stack(choices, 2)
    read = sum(len(chosen_BK.unique()) for chosen_BK in chosen_LTBK.flatten(0, 1)) / steps
    counts, expert = parameter_counts(config), 3 * config.hidden_size * config.expert_hidden_size
    # Of embedding tables, a step reads the output's.
    tables = counts.embedding - config.vocab_size * config.hidden_size
    others = counts.active - tables - config.layers * config.experts_per_token * expert
    return 4 * (others + read * expert)


def stream_bandwidth() -> float:
    """Bytes per second that one thread reads from memory: best of ten matrix-vector products."""
    matrix = torch.ones(STREAM_BYTES // 4096, 1024)
    vector, best = torch.ones(1024), float("inf")
    for _ in range(10):
        begin = time.process_time()
        torch.mv(matrix, vector)
        best = min(best, time.process_time() - begin)
    return STREAM_BYTES / best


def write_random(config: ModelConfig, path: Path) -> Path:
    """Write a model folder with random weights and a small tokenizer."""
    save_model(
        Decoder(config, torch.Generator().manual_seed(0)), Tokenizer.train([TEXT], 300), path
    )
    return path


if __name__ == "__main__":
    main(run)
