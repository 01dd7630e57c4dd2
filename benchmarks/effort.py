"""How often the chosen one of four answers is right, and what choosing costs in tokens.

Data: gsm8k_solutions, four labelled answers to each question by four models, replayed as draws.
Five-fold cross-validation by question: every verifier is measured on questions that it was not
trained on, and all questions are measured. Peer: the best single model on all questions. Limit: the
oracle (any of the four is right). Tokens are of a tokenizer trained on gsm8k's worked answers.

Two settings. `blind`: who wrote an answer is not known and the order is random. `by source`: it is
known, and the model that was most often right on the training part is asked first.

Intervals are 95%, by bootstrap over questions.

Shapes: Q questions.
"""

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import Row, context, main
from models.effort.labelled import Question, load_labelled
from models.effort.measure import Accuracy, measure
from models.effort.training import train_verifier
from models.tokenizer import Tokenizer

DATA = Path(os.environ.get("ARION_SHARED", "../shared"), "data")
ANSWERS = "gsm8k_solutions/gsm8k_solutions.jsonl.gz"
TEXTS = "gsm8k/gsm8k.jsonl.gz"
FOLDS, RESAMPLES, VOCABULARY = 5, 2000, 4096
PEER, LIMIT = "best single model", "oracle"


def run(quick: bool) -> Iterator[Row]:
    """Yield the rows of both settings."""
    torch.set_num_threads(1)
    questions = load_labelled(DATA / ANSWERS)[: 200 if quick else None]
    tokenizer = Tokenizer.train(_worked(), VOCABULARY)
    best, single_Q = best_single(questions)
    for name, by_source in (("blind", False), ("by source", True)):
        found = cross_validated(questions, tokenizer, by_source=by_source, seeds=1 if quick else 4)
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


def cross_validated(
    questions: Sequence[Question], tokenizer: Tokenizer, *, by_source: bool, seeds: int
) -> Accuracy:
    """Measure every question by a verifier that has not seen it; the mean over seeds of folds."""

    def tokens(text: str) -> int:
        return len(tokenizer.encode([text])[0])

    total: list[Accuracy] = []
    for seed in range(seeds):
        fold = torch.randperm(len(questions), generator=torch.Generator().manual_seed(seed)) % FOLDS
        columns = {field.name: torch.zeros(len(questions)).double() for field in fields(Accuracy)}
        for k in range(FOLDS):
            generator = torch.Generator().manual_seed(seed * FOLDS + k)
            kept = [q for q, f in zip(questions, fold.tolist(), strict=True) if f != k]
            left = [q for q, f in zip(questions, fold.tolist(), strict=True) if f == k]
            verifier = train_verifier(kept, generator, by_source=by_source)
            found = measure(verifier, left, generator, tokens)
            for name, column_Q in columns.items():
                column_Q[fold == k] = getattr(found, name)
        total.append(Accuracy(**columns))
    names = [field.name for field in fields(Accuracy)]
    return Accuracy(**{n: torch.stack([getattr(a, n) for a in total]).mean(0) for n in names})


def rows(setting: str, found: Accuracy, best: str, single_Q: Tensor) -> Iterator[Row]:
    """Lay one setting out: accuracies beside the best single model's, then auto beside all four."""
    oracle, peer = float(found.oracle_Q.mean()), float(single_Q.mean())
    for name, right_Q in (
        ("first answer", found.first_Q),
        ("most frequent answer", found.majority_Q),
        ("verifier, all four", found.fixed_Q),
        ("verifier, auto", found.auto_Q),
    ):
        value = float(right_Q.mean())
        details = context(
            ["torch", "tokenizers"], interval=interval(right_Q), questions=len(right_Q),
            difference_to_peer=interval(right_Q - single_Q), best_single=best,
        )  # fmt: skip
        yield Row(
            f"{setting}: {name}", value, "right", PEER, peer, value / peer, LIMIT, oracle,
            value / oracle, details,
        )  # fmt: skip
    share = float(found.auto_cost_Q.sum() / found.cost_Q.sum())
    details = context(
        ["torch", "tokenizers"], tokens=float(found.auto_cost_Q.sum()),
        difference_to_all_four=interval(found.auto_Q - found.fixed_Q),
    )  # fmt: skip
    yield Row(
        f"{setting}: tokens of auto", share, "of all four's", "all four", 1.0, 1 / share,
        context=details,
    )  # fmt: skip


def interval(value_Q: Tensor) -> list[float]:
    """Return the 2.5% and 97.5% quantiles of the mean over resampled questions."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(value_Q), (RESAMPLES, len(value_Q)), generator=generator)
    ends = torch.quantile(value_Q[drawn].mean(1), torch.tensor([0.025, 0.975]).double())
    return [round(float(end), 4) for end in ends]


def _worked() -> list[str]:
    with gzip.open(DATA / TEXTS, "rt", encoding="utf-8") as lines:
        read = [json.loads(line) for line in lines]
    return [each["answer"] for each in read if each["split"] == "train"]


if __name__ == "__main__":
    main(run)
