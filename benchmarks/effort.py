"""How often the chosen one of four answers is right, and what choosing costs in tokens.

Data: gsm8k_solutions, four labelled answers to each question by four models, replayed as draws.

Nested cross-validation by question. Outer folds are only measured. All that a verifier consists of
(features, weight decay, the stopping rule, the order of sources, its weights) is chosen by
`train_verifier` from the other folds alone, by cross-fitting within them. Several seeds of folds.

Peer: the best single model on all questions. Limit: the oracle (any of the four is right). Tokens
are of a tokenizer trained on gsm8k's worked answers. `auto` matches all four if the interval of the
difference lies above -MARGIN, stated before anything was measured.

Two settings. `blind`: who wrote an answer is not known and the order is random. `by source`: it is
known, and the model that was most often right on the training part is asked first.

Intervals are 95%, by paired bootstrap over questions, of means over the seeds.

Shapes: Q questions, S seeds.
"""

import gzip
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Row, context, main
from models.effort.labelled import Question, load_labelled
from models.effort.measure import Accuracy, measure
from models.effort.training import train_verifier
from models.effort.verifier import Card
from models.tokenizer import Tokenizer

DATA = Path(os.environ.get("ARION_SHARED", "../shared"), "data")
ANSWERS = "gsm8k_solutions/gsm8k_solutions.jsonl.gz"
TEXTS = "gsm8k/gsm8k.jsonl.gz"
FOLDS, RESAMPLES, VOCABULARY = 5, 2000, 4096
MARGIN = 0.01
SHARE = 0.58  # what auto may spend: two standard errors below the 0.6 that is asked of it
LOOKED_AT = 3  # every third question was, when the present plans were made; the others were not
PEER, LIMIT = "best single model", "oracle"
_POWER = 2.8  # standard errors that 80% of samples find at 5%, two-sided


def run(quick: bool) -> Iterator[Row]:
    """Yield the rows of both settings."""
    torch.set_num_threads(1)
    questions = load_labelled(DATA / ANSWERS)[: 200 if quick else None]
    tokenizer = Tokenizer.train(_worked(), VOCABULARY)

    def tokens(text: str) -> int:
        return len(tokenizer.encode([text])[0])

    best, single_Q = best_single(questions)
    for name, by_source, seeds in (("blind", False, 2), ("by source", True, 4)):
        found = cross_validated(
            questions, tokens, by_source=by_source, seeds=1 if quick else seeds
        )  # fmt: skip
        yield from rows(name, found, best, single_Q)


def best_single(questions: Sequence[Question]) -> tuple[str, Tensor]:
    """Return the source that is right most often, and where it is, fp64 [Q]."""
    right = {
        answer.source: torch.tensor(
            [any(a.correct for a in q.answers if a.source == answer.source) for q in questions]
        ).double()
        for answer in questions[0].answers
    }
    name = max(right, key=lambda source: float(right[source].mean()))
    return name, right[name]


@dataclass(frozen=True)
class Found:
    """What the outer folds gave: of each seed, and what their training parts chose, how often."""

    seeds: tuple[Accuracy, ...]
    chosen: Counter[str]

    def mean(self) -> Accuracy:
        """Return the mean over seeds, per question."""
        names = [field.name for field in fields(Accuracy)]
        return Accuracy(
            **{n: torch.stack([getattr(a, n) for a in self.seeds]).mean(0) for n in names}
        )


def cross_validated(
    questions: Sequence[Question], cost: Callable[[str], int], *, by_source: bool, seeds: int
) -> Found:
    """Measure every question by a verifier that has not seen it, once a seed."""
    found, chosen = [], Counter[str]()
    for seed in range(seeds):
        fold = torch.randperm(len(questions), generator=torch.Generator().manual_seed(seed)) % FOLDS
        columns = {field.name: torch.zeros(len(questions)).double() for field in fields(Accuracy)}
        for k in range(FOLDS):
            generator = torch.Generator().manual_seed(seed * FOLDS + k)
            kept = [q for q, f in zip(questions, fold.tolist(), strict=True) if f != k]
            left = [q for q, f in zip(questions, fold.tolist(), strict=True) if f == k]
            verifier = train_verifier(kept, generator, by_source=by_source, auto_share=SHARE)
            chosen[_told(verifier.card)] += 1
            for name, value_Q in vars(measure(verifier, left, generator, cost)).items():
                columns[name][fold == k] = value_Q
        found.append(Accuracy(**columns))
    return Found(tuple(found), chosen)


def rows(setting: str, found: Found, best: str, single_Q: Tensor) -> Iterator[Row]:
    """Lay one setting out: accuracies beside the best single model's, then auto beside all four."""
    mean = found.mean()
    oracle, peer = float(mean.oracle_Q.mean()), float(single_Q.mean())
    for name, column in (
        ("first answer", "first_Q"),
        ("most frequent answer", "majority_Q"),
        ("verifier, all four", "fixed_Q"),
        ("verifier, auto", "auto_Q"),
    ):
        right_Q = getattr(mean, column)
        value = float(right_Q.mean())
        details = context(
            ["torch", "tokenizers"], interval=interval(right_Q), questions=len(right_Q),
            seeds=[round(float(getattr(each, column).mean()), 4) for each in found.seeds],
            difference_to_peer=difference(right_Q, single_Q), best_single=best,
        )  # fmt: skip
        yield Row(
            f"{setting}: {name}", value, "right", PEER, peer, value / peer, LIMIT, oracle,
            value / oracle, details,
        )  # fmt: skip
    share = float(mean.auto_cost_Q.sum() / mean.cost_Q.sum())
    lost = difference(mean.auto_Q, mean.fixed_Q)
    details = context(
        ["torch", "tokenizers"], tokens=float(mean.auto_cost_Q.sum()),
        interval=interval(mean.auto_cost_Q, mean.cost_Q), difference_to_all_four=lost,
        margin=MARGIN, matches=lost["interval"][0] > -MARGIN, chosen=dict(found.chosen),
    )  # fmt: skip
    yield Row(
        f"{setting}: tokens of auto", share, "of all four's", "all four", 1.0, 1 / share,
        context=details,
    )  # fmt: skip


def difference(left_Q: Tensor, right_Q: Tensor) -> dict[str, Any]:
    """Return mean, interval and detectable size of a paired difference, of all and of those apart.

    Detectable: a true difference that 80% of such samples would find. Apart: of the questions that
    were not looked at when the plans were made.
    """
    value_Q = left_Q - right_Q
    apart_Q = value_Q[torch.arange(len(value_Q)) % LOOKED_AT != 0]
    error = float(value_Q.std() / len(value_Q) ** 0.5)
    return {
        "mean": round(float(value_Q.mean()), 4),
        "interval": interval(value_Q),
        "detectable": round(_POWER * error, 4),
        "apart": {"mean": round(float(apart_Q.mean()), 4), "interval": interval(apart_Q)},
    }


def interval(value_Q: Tensor, over_Q: Tensor | None = None) -> list[float]:
    """Return the 2.5% and 97.5% quantiles of the mean over resampled questions.

    Of the ratio of sums, where there is something to divide by.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(value_Q), (RESAMPLES, len(value_Q)), generator=generator)
    below = torch.tensor(float(len(value_Q))) if over_Q is None else over_Q[drawn].sum(1)
    ends = torch.quantile(value_Q[drawn].sum(1) / below, torch.tensor([0.025, 0.975]).double())
    return [round(float(end), 4) for end in ends]


def _told(card: Card) -> str:
    seen = "content and agreement" if card.content else "agreement"
    return f"{seen}, decay {card.decay:g}, power {card.stopping.power}"


def _worked() -> list[str]:
    with gzip.open(DATA / TEXTS, "rt", encoding="utf-8") as lines:
        read = [json.loads(line) for line in lines]
    return [each["answer"] for each in read if each["split"] == "train"]


if __name__ == "__main__":
    main(run)
