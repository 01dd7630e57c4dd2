"""Held-out loss and expert use of a model over rows of text.

Shapes: B rows, T positions, L layers, E experts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.decoder import Decoder
from models.language_model import IGNORED, LanguageModel
from models.tokenizer import Row, stack_rows


@dataclass(frozen=True)
class Evaluation:
    """Held-out figures of one text collection.

    Attributes:
        nats_per_token: mean cross-entropy over all targets. bits_per_byte: comparable between
            tokenizers. tokens: targets counted.

    """

    nats_per_token: float
    bits_per_byte: float
    tokens: int


@torch.no_grad()
def evaluate(model: LanguageModel, rows: Sequence[Row], length: int, batch: int = 64) -> Evaluation:
    """Return the loss of `model` over `rows` (each at most `length` targets)."""
    if not rows:
        raise ValueError("Expected rows to evaluate, got none. Hold out more records.")
    nats, tokens = 0.0, 0
    for begin in range(0, len(rows), batch):
        loss = model.loss(*stack_rows(rows[begin : begin + batch], length))
        nats += float(loss.total_B.double().sum())
        tokens += int(loss.tokens_B.sum())
    size = sum(row.target_bytes for row in rows)
    return Evaluation(nats / tokens, nats / math.log(2) / max(size, 1), tokens)


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
