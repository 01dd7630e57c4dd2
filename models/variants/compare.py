"""An artefact beside a decoder: token ids, logits and loss, as its own runtime computes them.

Shapes: T positions, V vocabulary.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from unicodedata import normalize

import torch
from torch import Tensor

from models.decoder import Decoder
from models.tokenizer import Row, Tokenizer
from models.variants.runtime import Runtime

SAMPLES = (
    "The committee met on 3 March 2024, at 09:15; it didn't agree on clause 7(b).",
    "환자는 오전 9시에 병동에서 진료를 받았고, 다음 주에 다시 오기로 했다.",
    "한국어와 English를 섞어 쓴 문장 — “인용”과 괄호(괄호)도 있다.",
    "🙂👩‍⚕️🇰🇷 emoji, ✓ and ½ of a café in Zürich; 你好世界。",
    "  leading\tand  double  blanks\n\n\n   \t\ntrailing   ",
    "def f(x: int) -> int:\n    return x ** 2  # 1,234,567.89\n",
    "I'LL WE'RE can't <b>tags</b> a_b-c/d\\e https://example.org/?q=1&r=2",
)
SAMPLES_NAME = "samples"


@dataclass(frozen=True)
class Difference:
    """How far an artefact is from a decoder on some text; those of several texts add up.

    Attributes:
        tokens: predictions compared, at least 1.
        nats, model_nats: summed cross-entropy of the text's own next tokens.
        kl_T: KL(model || artefact) of each, nats. agreed: predictions with the same likeliest
            token.
        largest: largest difference of a logit. scale: largest magnitude of the model's.

    """

    tokens: int
    nats: float
    model_nats: float
    kl_T: tuple[float, ...]
    agreed: int
    largest: float
    scale: float = 0.0

    def __add__(self, other: "Difference") -> "Difference":
        return Difference(
            self.tokens + other.tokens,
            self.nats + other.nats,
            self.model_nats + other.model_nats,
            self.kl_T + other.kl_T,
            self.agreed + other.agreed,
            max(self.largest, other.largest),
            max(self.scale, other.scale),
        )

    @property
    def kl(self) -> float:
        """Mean KL divergence, nats per token."""
        return math.fsum(self.kl_T) / self.tokens

    @property
    def median_kl(self) -> float:
        """Its median: where an expert near a tie is chosen otherwise, a few tokens differ much."""
        return statistics.median(self.kl_T)

    @property
    def loss_rise(self) -> float:
        """Nats per token that the artefact loses more than the model."""
        return (self.nats - self.model_nats) / self.tokens


class Computes(Protocol):
    """What is held against a decoder: a `Runtime`, or all of one that matters here."""

    def logits(self, ids: Sequence[int]) -> Tensor:
        """See `Runtime.logits`."""


# Of a runtime that gives no numbers.
_NOTHING = Difference(1, math.inf, 0.0, (math.inf,), 0, math.inf)


def sample_rows(tokenizer: Tokenizer, length: int) -> list[Row]:
    """The built-in sample texts as rows of at most `length` targets."""
    return [rows[0] for rows in tokenizer.rows(SAMPLES, length, 1)]


def unequal_tokens(tokenizer: Tokenizer, runtime: Runtime, texts: Sequence[str]) -> list[str]:
    """Return the texts that the artefact's tokenizer cuts otherwise than the model's.

    Texts are brought into Unicode's composed form first, which llama.cpp leaves to its caller.
    """
    begin = tokenizer.begin_of_text_id
    composed = [normalize("NFC", text) for text in texts]
    wanted = zip(composed, tokenizer.encode(composed), strict=True)
    return [text for text, ids in wanted if runtime.encode(text) != [begin, *ids]]


@torch.no_grad()
def compare(
    model: Decoder,
    runtime: Computes,
    rows: Mapping[str, Sequence[Row]],
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Difference]:
    """Run an artefact beside a decoder, text by text.

    Args:
        model: on CPU in fp32. runtime: with a vocabulary at least as large.
        rows: at least one by name, within the positions that the runtime was opened with.
        advance: called with (rows compared, rows in all).

    """
    total, done = sum(map(len, rows.values())), 0
    found: dict[str, Difference] = {}
    for name, part in rows.items():
        for row in part:
            each = _difference(model, runtime, row)
            found[name] = found[name] + each if name in found else each
            done += 1
            advance(done, total)
    return found


def _difference(model: Decoder, runtime: Computes, row: Row) -> Difference:
    ids, target_T = list(row.ids[:-1]), torch.tensor(row.ids[1:])
    expected_TV = model(torch.tensor([ids]))[0]
    found_TV = runtime.logits(ids)[:, : expected_TV.shape[-1]]
    if found_TV.shape != expected_TV.shape or not torch.isfinite(found_TV).all():
        return replace(_NOTHING, tokens=len(ids))
    log_p_TV, log_q_TV = (x.double().log_softmax(-1) for x in (expected_TV, found_TV))
    counted = slice(row.context, None)
    kl_T = (log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(-1)
    agreed_T = expected_TV.argmax(-1) == found_TV.argmax(-1)
    return Difference(
        tokens=len(target_T[counted]),
        nats=_nats(log_q_TV, target_T)[counted].sum().item(),
        model_nats=_nats(log_p_TV, target_T)[counted].sum().item(),
        kl_T=tuple(kl_T[counted].tolist()),
        agreed=int(agreed_T[counted].sum()),
        largest=float((found_TV - expected_TV).abs().max()),
        scale=float(expected_TV.abs().max()),
    )


def _nats(log_p_TV: Tensor, target_T: Tensor) -> Tensor:
    return -log_p_TV.gather(-1, target_T[:, None])[:, 0]
