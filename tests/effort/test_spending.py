"""Who gets the next draw: against closed forms and all allocations of small cases."""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from models.effort.judges import Check
from models.effort.spending import Asked, Chosen, Draw, Effort, Sampler, spend


@dataclass(frozen=True)
class Known:
    """A judge who knows right answers ("1") and stops at the first."""

    most: int = 4

    def scores(self, _prompt: str, answers: Sequence[str]) -> list[float]:
        return [float(answer == "1") for answer in answers]

    def gain(self, scores: Sequence[float]) -> float:
        return 0.0 if any(scores) else 1.0 / (len(scores) + 2)


def recorded(outcomes: Sequence[Sequence[str]], tokens: int = 1) -> Sampler:
    def sampler(asked: Sequence[Asked]) -> list[Draw]:
        return [Draw(outcomes[each.index][len(each.answers)], tokens) for each in asked]

    return sampler


def right(chosen: Chosen) -> bool:
    return chosen.draws[chosen.best].text == "1"


@pytest.mark.parametrize("effort", [Effort(4), Effort()])
def test_best_of_n_is_right_as_often_as_the_closed_form_says(effort: Effort) -> None:
    p, expected_right, expected_draws = 0.3, 0.0, 0.0
    for outcome in itertools.product("01", repeat=4):
        weight = p ** outcome.count("1") * (1 - p) ** outcome.count("0")
        [chosen] = spend(["q"], recorded([outcome]), Known(), effort, 1)
        expected_right += weight * right(chosen)
        expected_draws += weight * len(chosen.draws)
    assert expected_right == pytest.approx(1 - (1 - p) ** 4)
    # Stopping at the first right answer costs the mean of a geometric law cut at 4.
    draws = 4 if effort.draws else sum((1 - p) ** k for k in range(4))
    assert expected_draws == pytest.approx(draws)


@dataclass(frozen=True)
class Falling:
    """A judge whose gains fall with each draw, by a table per prompt; texts name the prompt."""

    table: Sequence[Sequence[float]]
    most: int = 4

    def scores(self, prompt: str, answers: Sequence[str]) -> list[float]:
        return [float(prompt)] * len(answers)

    def gain(self, scores: Sequence[float]) -> float:
        return self.table[int(scores[0])][len(scores) - 1]


def test_a_budget_goes_where_all_allocations_say() -> None:
    table = [[0.3, 0.2, 0.01], [0.05, 0.04, 0.03], [0.25, 0.24, 0.23]]
    prompts = ["0", "1", "2"]
    for budget in range(3, 13):
        chosen = spend(
            prompts, recorded(["0000"] * 3), Falling(table), Effort(budget=budget), 1
        )  # fmt: skip
        counts = [len(each.draws) for each in chosen]

        def value(counts: Sequence[int]) -> float:
            return sum(sum(row[: n - 1]) for row, n in zip(table, counts, strict=True))

        allowed = (c for c in itertools.product(range(1, 5), repeat=3) if sum(c) <= budget)
        assert value(counts) == pytest.approx(max(map(value, allowed)))
        assert sum(counts) == budget


def test_a_budget_is_never_exceeded_and_holds_one_draw_each() -> None:
    sampler = recorded(["0000"] * 3, tokens=5)
    chosen = spend(["a", "b", "c"], sampler, Known(), Effort(4, budget=43, batch=2), 5)
    assert sum(draw.tokens for each in chosen for draw in each.draws) == 40
    assert max(len(e.draws) for e in chosen) - min(len(e.draws) for e in chosen) <= 1
    with pytest.raises(ValueError, match="budget of at least 15, one answer to each prompt, got 9"):
        spend(["a", "b", "c"], sampler, Known(), Effort(budget=9), 5)


def test_a_check_is_run_once_for_each_answer(tmp_path: Path) -> None:
    """Answers are scored anew with each that is drawn: eight would cost 36 runs."""
    ran = tmp_path / "ran"
    program = f"open({str(ran)!r}, 'a').write('x'); raise SystemExit(1)"
    check = Check((sys.executable, "-c", program))
    answers = [f"answer {number}" for number in range(8)]
    for count in range(1, 9):
        assert check.scores("prompt", answers[:count]) == [0.0] * count
    assert ran.read_text() == "x" * 8


def test_a_check_is_asked_by_exit_code_and_time() -> None:
    check = Check(("grep", "-q", '"answer": "42"'))
    assert check.scores("six times seven", ["41", "42"]) == [0.0, 1.0]
    assert check.gain([0.0, 1.0]) == 0
    assert check.gain([0.0, 0.0]) == pytest.approx(1 / 4)
    assert Check(("sleep", "5"), timeout_s=0.05).scores("", [""]) == [0.0]
    with pytest.raises(ValueError, match="Expected a check that can be run, got no-such-program"):
        Check(("no-such-program",)).scores("", [""])
