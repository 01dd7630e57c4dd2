"""What runs cost, as a ledger says, and what they cost together."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Spend(Protocol):
    """What a run may cost, and whom."""

    @property
    def epsilon_micro(self) -> int | None:
        """Millionths, for the whole schedule; None where the run adds no noise."""

    @property
    def delta_1e15(self) -> int:
        """Units of 1e-15, for the whole schedule."""

    @property
    def data_set(self) -> str:
        """Name of the data."""

    @property
    def kept_apart(self) -> bool:
        """Whether it costs the units of that data set only."""


@dataclass(frozen=True)
class RunSpend:
    """What one run may cost and has used, as its ledger says.

    Attributes:
        epsilon_micro: millionths, for the whole schedule; None where the run adds no noise.
        delta_1e15: units of 1e-15, for the whole schedule.
        releases: length of the schedule.
        debits: releases made so far.
        kept_apart: whether it costs the units of its own data set only.

    """

    run: str
    epsilon_micro: int | None
    delta_1e15: int
    releases: int
    debits: int
    unit: str
    data_set: str
    kept_apart: bool = False


def compose_spends(runs: Sequence[Spend], data_set: str | None = None) -> tuple[int | None, int]:
    """Compose what all runs may cost any one unit.

    Runs add up; of those that are kept apart, only those on one data set do, since no unit is in
    two: the largest of these sums counts.

    Args:
        runs: of one ledger, charged for one unit.
        data_set: whose units to compose for; None composes for the units of any.

    Formal guarantee: basic composition, valid for runs chosen after seeing the results of earlier
    ones: the releases of all runs together are (epsilon, delta)-DP per unit. Runs that are kept
    apart from a unit's data set do not depend on it (docs/privacy.md, section 14).

    Returns:
        epsilon in millionths (None if any run has no noise), delta in units of 1e-15.

    Source: Dwork and Roth 2014, theorem 3.16; Rogers et al. 2016 (1605.08294) for adaptivity;
    McSherry 2009 (10.1145/1559845.1559850), theorem 4, for the maximum.

    """
    apart: dict[str, list[Spend]] = defaultdict(list)
    for run in runs:
        if run.kept_apart and data_set in {None, run.data_set}:
            apart[run.data_set].append(run)
    everywhere = [run for run in runs if not run.kept_apart]
    sums = [_added([*everywhere, *own]) for own in apart.values()] or [_added(everywhere)]
    known = [epsilon for epsilon, _ in sums if epsilon is not None]
    total = max(known) if len(known) == len(sums) else None
    return total, max(delta for _, delta in sums)


def _added(runs: Sequence[Spend]) -> tuple[int | None, int]:
    epsilons = [run.epsilon_micro for run in runs]
    known = [epsilon for epsilon in epsilons if epsilon is not None]
    total = sum(known) if len(known) == len(epsilons) else None
    return total, sum(run.delta_1e15 for run in runs)


def format_micro(epsilon_micro: int | None) -> str:
    """Write an epsilon for people; None is a run without a finite one."""
    return "unbounded" if epsilon_micro is None else f"{epsilon_micro / 1e6:.6f}"
