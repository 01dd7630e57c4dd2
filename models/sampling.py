"""Choosing the next token from logits.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The filters apply in the order in which they are listed.

    Attributes:
        repetition_penalty: >= 1; logits of tokens that the row holds already are divided by it, or
            multiplied where negative (Keskar et al. 2019, arXiv 1909.05858). 1 for none.
        temperature: >= 0; the logits are divided by it. 0 takes the likeliest token.
        top_k: only the k likeliest tokens, or None.
        top_p: in (0, 1]; only the likeliest tokens, until their probability reaches top_p (Holtzman
            et al. 2020, arXiv 1904.09751). 1 for all.
        min_p: in [0, 1]; only tokens at least min_p times as likely as the likeliest (Nguyen et al.
            2024, arXiv 2407.01082). 0 for all.

    Raises:
        ValueError: out of range.

    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for holds, name, wanted in (
            (1 <= self.repetition_penalty < float("inf"), "repetition_penalty", "at least 1"),
            (0 <= self.temperature < float("inf"), "temperature", "at least 0"),
            (self.top_k is None or self.top_k >= 1, "top_k", "at least 1"),
            (0 < self.top_p <= 1, "top_p", "above 0 and at most 1"),
            (0 <= self.min_p <= 1, "min_p", "between 0 and 1"),
        ):
            if not holds:
                raise ValueError(
                    f"Expected {name} {wanted}, got {getattr(self, name)}. Correct the option."
                )
        filtered = self.top_k is not None or self.top_p < 1 or self.min_p > 0
        if self.temperature == 0 and filtered:
            raise ValueError(
                "Expected temperature above 0 with top_k, top_p or min_p, got 0: the likeliest "
                "token is taken whatever they say. Set temperature, or leave them out."
            )


GREEDY = Sampling()


def penalise(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Return logits with those of seen tokens made smaller; see `Sampling`."""
    lowered_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, lowered_BV, logits_BV)


def distribution(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Return the probabilities that tokens are drawn with, fp32 [B, V]; temperature is above 0."""
    logits_BV = logits_BV.float() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits_BV.shape[-1]:
        best = logits_BV.topk(sampling.top_k)
        logits_BV = torch.full_like(logits_BV, -torch.inf).scatter(-1, best.indices, best.values)
    prob_BV = logits_BV.softmax(-1)
    if sampling.top_p < 1:
        sorted_BV, order_BV = prob_BV.sort(descending=True, stable=True)
        likelier_BV = sorted_BV.cumsum(-1) - sorted_BV
        # The likeliest is kept whatever rounding does to the sum before it.
        likelier_BV[:, 0] = 0
        prob_BV = prob_BV.scatter(-1, order_BV, sorted_BV.where(likelier_BV < sampling.top_p, 0))
    if sampling.min_p > 0:
        least_B1 = sampling.min_p * prob_BV.amax(-1, keepdim=True)
        prob_BV = prob_BV.where(prob_BV >= least_B1, 0)
    return prob_BV / prob_BV.sum(-1, keepdim=True)


def draw(prob_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw a token per row, int64 [B], each from the row's own generator by inversion."""
    cumulative_BV = prob_BV.double().cumsum(-1)
    uniform_B = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
    level_B = uniform_B.to(prob_BV.device) * cumulative_BV[:, -1]
    # The first token whose sum exceeds the level: never one of probability 0.
    return torch.searchsorted(cumulative_BV, level_B[:, None], right=True).squeeze(1)
