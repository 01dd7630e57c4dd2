"""What a verifier sees of answers to one prompt: each by itself, and each beside the others.

Shapes: N answers to one prompt, F features.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.effort.answers import Calculation, calculations, final_answer, numbers, same

_COUNTED = 4  # equal answers beyond so many say nothing new
_USUAL = {1.0, 2.0, 7.0, 12.0, 24.0, 30.0, 52.0, 60.0, 100.0, 365.0}  # halves, weeks, hours, %


@dataclass(frozen=True)
class Read:
    """One answer as it was read.

    Attributes:
        final: see `final_answer`. results: what its calculations come to. alone: its features that
            no other answer changes.

    """

    final: str
    results: frozenset[float]
    alone: dict[str, float]


def read(prompt: str, answer: str) -> Read:
    """Read one answer to a prompt."""
    found = calculations(answer)
    final = final_answer(answer)
    results = frozenset(each.result for each in found)
    alone = _written(prompt, answer) | _computed(prompt, found) | _ending(prompt, final, found)
    return Read(final, results, alone)


def features(answers: Sequence[Read]) -> Tensor:
    """Return the features of answers to one prompt, fp32 [N, F], in the order of `NAMES`."""
    rows = [each.alone | _beside(i, answers) for i, each in enumerate(answers)]
    return torch.tensor([[float(v) for v in row.values()] for row in rows]).reshape(
        len(rows), len(NAMES)
    )


def agreement(answers: Sequence[Read]) -> Tensor:
    """Return which answers end alike, bool [N, N]; none with itself."""
    equal = [[a.final == b.final and bool(a.final) for b in answers] for a in answers]
    return torch.tensor(equal).reshape(len(answers), -1) & ~torch.eye(len(answers)).bool()


def _written(prompt: str, answer: str) -> dict[str, float]:
    lines = [line for line in answer.splitlines() if line.strip()]
    words = set(re.findall(r"[^\W\d_]+", answer.lower()))
    asked = set(re.findall(r"[^\W\d_]+", prompt.lower()))
    return {
        "log_length": math.log1p(len(answer)),
        "log_length_to_prompt": math.log1p(len(answer)) - math.log1p(len(prompt)),
        "log_prompt": math.log1p(len(prompt)),
        "lines": min(len(lines), 20),
        "repeated_lines": min(len(lines) - len(set(lines)), 10),
        "words_of_prompt": len(words & asked) / max(1, len(words)),
        "marks_end": bool(re.search(r"####|\bA:|[Aa]nswer is", answer)),
    }


def _computed(prompt: str, found: Sequence[Calculation]) -> dict[str, float]:
    given = set(numbers(prompt))
    known, used, fed = set(given), set[float](), set[float]()
    results: list[float] = []
    foreign = usual = 0
    for each in found:
        used |= given.intersection(each.numbers)
        fed.update(x for x in each.numbers if x in results)
        unknown = [x for x in each.numbers if x not in known]
        usual += sum(x in _USUAL for x in unknown)
        foreign += sum(x not in _USUAL for x in unknown)
        results.append(each.result)
        known.add(each.result)
    count, steps = max(1, len(found)), Counter(op for each in found for op in each.operators)
    return {
        "calculations": min(len(found), 20),
        "no_calculation": not found,
        "one_calculation": len(found) == 1,
        "two_calculations": len(found) == 2,
        "share_that_holds": sum(each.holds for each in found) / count,
        "all_hold": all(each.holds for each in found),
        "foreign_numbers": min(foreign, 10),
        "no_foreign_number": foreign == 0,
        "usual_numbers": min(usual, 10),
        "share_of_given_used": len(used) / max(1, len(given)),
        "all_given_used": used == given,
        "given": min(len(given), 20),
        "given_unused": min(len(given - used), 20),
        "results_unused": min(len(set(results[:-1]) - fed), 10),
        "share_fractional": sum(x != round(x) for x in results) / count,
        "negative_result": any(x < 0 for x in results),
        "calculations_less_given": max(-20, min(len(found) - len(given), 20)),
    } | {f"uses_{op}": min(steps[op], 10) for op in "+-*/"}


def _ending(prompt: str, final: str, found: Sequence[Calculation]) -> dict[str, float]:
    value = float(final) if re.fullmatch(r"-?[\d.e+]+", final) else None
    given = numbers(prompt)
    largest = math.log1p(min(max(given, default=0.0), 1e12))
    size = 0.0 if value is None else math.log1p(min(abs(value), 1e12))
    return {
        "numeric": value is not None,
        "whole": value is not None and value == round(value),
        "negative": value is not None and value < 0,
        "zero": value == 0,
        "log_size": size,
        "log_size_to_given": size - largest if value is not None and given else 0.0,
        "final_is_given": value in given,
        "final_is_last_result": bool(found) and value is not None and same(found[-1].result, value),
        "final_is_a_result": any(value is not None and same(c.result, value) for c in found),
    }


def _beside(index: int, answers: Sequence[Read]) -> dict[str, float]:
    me, others = answers[index], [each for i, each in enumerate(answers) if i != index]
    alike = sum(me.final == each.final and bool(me.final) for each in others)
    rivals = Counter(each.final for each in others if each.final and each.final != me.final)
    shared = [len(me.results & each.results) / max(1, len(me.results)) for each in others]
    lengths = [each.alone["log_length"] for each in others]
    steps = [each.alone["calculations"] for each in others]
    count = max(1, len(others))
    return {
        "others": min(len(others), _COUNTED),
        **{f"alike_{k}": min(alike, _COUNTED) == k for k in range(_COUNTED + 1)},
        "share_alike": alike / count,
        "largest_rival": min(max(rivals.values(), default=0), _COUNTED),
        "distinct": min(len({each.final for each in answers}), _COUNTED),
        "shared_results": sum(shared) / count,
        "final_among_others_results": sum(_reaches(each, me.final) for each in others) / count,
        "longer": me.alone["log_length"] - sum(lengths) / count if others else 0.0,
        "more_steps": me.alone["calculations"] - sum(steps) / count if others else 0.0,
    }


def _reaches(answer: Read, final: str) -> bool:
    return any(f"{result:.6g}" == final for result in answer.results)


_EMPTY = read("", "")
NAMES: tuple[str, ...] = (*_EMPTY.alone, *_beside(0, [_EMPTY]))
ALONE = len(_EMPTY.alone)  # so many of them, the first, are of an answer by itself
