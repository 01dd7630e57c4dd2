"""Public warm-up: ordinary training on public text, before anything private is touched.

Shapes: B sequences, T positions.
"""

import math
from collections.abc import Callable, Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.decoder import Decoder
from models.tokenizer import Tokenizer


class WarmUp(BaseModel):
    """Settings of the public warm-up: AdamW, linear warm-up, cosine to 3% of the rate.

    Attributes:
        balance, z: weights of the sequence-wise router losses (the router trains only here).

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=900, ge=0)
    batch: int = Field(default=16, gt=0)
    sequence_length: int = Field(default=128, gt=1)
    learning_rate: float = Field(default=4e-3, gt=0)
    balance: float = Field(default=1e-2, ge=0)
    z: float = Field(default=1e-3, ge=0)


def token_stream(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Concatenate documents with end-of-text after each, int32 [total].

    Begin-of-text stands before each where it is another token than end-of-text.
    """
    begin, end = tokenizer.begin_of_text_id, tokenizer.end_of_text_id
    opening = [] if begin == end else [begin]
    ids: list[int] = []
    for first in range(0, len(texts), 256):
        for encoded in tokenizer.encode(texts[first : first + 256]):
            ids.extend((*opening, *encoded, end))
    return torch.tensor(ids, dtype=torch.int32)


def warm_up(
    model: Decoder,
    stream: Tensor,
    settings: WarmUp,
    generator: torch.Generator,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """Train all weights, router included, on random windows of public text.

    Args:
        stream: public tokens, int32, longer than settings.sequence_length.
        progress: called with (step from 1, loss of the step in nats per token).

    Returns:
        Mean loss of the last 50 steps, nats per token.

    Raises:
        ValueError: the stream is too short, or the loss is not finite.

    """
    length = settings.sequence_length
    if len(stream) <= length + 1:
        raise ValueError(
            f"Expected more than {length + 1} public tokens, got {len(stream)}. "
            "Give more public text or a shorter warm_up.sequence_length."
        )
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    losses: list[float] = []
    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * cosine(step, settings.steps)
        window_BT = _windows(stream, settings, generator)
        optimiser.zero_grad()
        loss = model.loss(
            window_BT[:, :-1], window_BT[:, 1:], balance=settings.balance, z=settings.z
        )
        (loss.total_B.sum() / loss.tokens_B.sum() + loss.router_B.mean()).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.total_B.detach().sum() / loss.tokens_B.sum()))
        if not math.isfinite(losses[-1]):
            raise ValueError(
                f"Expected a finite warm-up loss, got {losses[-1]} at step {step + 1}. "
                "Lower warm_up.learning_rate."
            )
        progress(step + 1, losses[-1])
    return sum(losses[-50:]) / max(len(losses[-50:]), 1)


def cosine(step: int, steps: int, floor: float = 0.03) -> float:
    """Learning-rate factor: linear over the first 5%, then a cosine down to `floor`."""
    rise = max(1, steps // 20)
    if step < rise:
        return (step + 1) / rise
    along = (step - rise) / max(1, steps - rise)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * along))


def _windows(stream: Tensor, settings: WarmUp, generator: torch.Generator) -> Tensor:
    length = settings.sequence_length
    begin_B = torch.randint(0, len(stream) - length, (settings.batch,), generator=generator)
    return stream[begin_B[:, None] + torch.arange(length + 1)].long()
