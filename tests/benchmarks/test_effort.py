"""The benchmark of effort on answers whose truth is known: it finds a lead, and invents none."""

import random

import pytest
import torch

from benchmarks.effort import Found, best_single, cross_validated, difference, interval, rows
from models.effort.features import read
from models.effort.labelled import Labelled, Question

RIGHT = {"z": 0.6, "w": 0.5, "x": 0.5, "y": 0.5}
SLIPS = 0.7  # of the wrong answers miscalculate; the others look like right ones
COUNT = 250


def planted(seed: int, *, shuffled: bool = False) -> list[Question]:
    """Answers that are right by chance; only slips tell. Shuffled: labels change questions."""
    chance = random.Random(seed)
    table = {s: [chance.random() < p for _ in range(COUNT)] for s, p in RIGHT.items()}
    texts = {s: [_answer(chance, good) for good in table[s]] for s in RIGHT}
    if shuffled:
        for labels in table.values():
            chance.shuffle(labels)
    return [
        Question(
            "How many?",
            tuple(
                Labelled(texts[s][n], table[s][n], s, read("How many?", texts[s][n])) for s in RIGHT
            ),
        )
        for n in range(COUNT)
    ]


def _answer(chance: random.Random, good: bool) -> str:
    a, b = chance.randint(10, 99), chance.randint(10, 99)
    said = a * b + (0 if good or chance.random() > SLIPS else chance.randint(1, 9))
    return f"{a}*{b} = <<{a}*{b}={said}>>{said}\nA: {said}"


def nested(questions: list[Question]) -> Found:
    return cross_validated(questions, len, by_source=True, seeds=1)


@pytest.fixture(scope="module")
def found() -> Found:
    return nested(planted(0))


def test_a_planted_lead_over_the_best_source_is_found_and_as_large_as_it_is(found: Found) -> None:
    name, single_Q = best_single(planted(0))
    assert name == "z"
    lead = difference(found.mean().fixed_Q, single_Q)
    assert lead["interval"][0] > 0
    # Best is to take the first, in the order of RIGHT, that does not slip.
    truth, slipped = 0.0, 1.0
    for p in RIGHT.values():
        truth += slipped * p
        slipped *= (1 - p) * SLIPS
    error = (truth * (1 - truth) / COUNT) ** 0.5
    assert float(found.mean().fixed_Q.mean()) == pytest.approx(truth, abs=3 * error)


def test_no_lead_is_found_where_labels_are_shuffled() -> None:
    questions = planted(0, shuffled=True)
    lead = difference(nested(questions).mean().fixed_Q, best_single(questions)[1])
    assert lead["interval"][0] <= 0
    assert lead["mean"] < 0.02


def test_rows_say_whether_auto_matches_within_the_margin(found: Found) -> None:
    listed = {row.metric: row for row in rows("s", found, *best_single(planted(0)))}
    spent, mean = listed["s: tokens of auto"], found.mean()
    assert spent.value == pytest.approx(float(mean.auto_cost_Q.sum() / mean.cost_Q.sum()))
    lost = spent.context["difference_to_all_four"]
    assert spent.context["matches"] == (lost["interval"][0] > -0.01)
    assert lost["mean"] == pytest.approx(float((mean.auto_Q - mean.fixed_Q).mean()), abs=1e-4)
    assert sum(spent.context["chosen"].values()) == 5


def test_an_interval_is_that_of_the_mean_and_of_a_ratio() -> None:
    value_Q = torch.arange(400).double() % 2
    low, high = interval(value_Q)
    assert (low, high) == pytest.approx((0.451, 0.549), abs=0.006)  # 0.5 -+ 1.96 * 0.5 / 20
    assert interval(value_Q * 3, value_Q) == [3.0, 3.0]
    assert difference(value_Q, 0 * value_Q)["detectable"] == pytest.approx(0.07, abs=0.001)
