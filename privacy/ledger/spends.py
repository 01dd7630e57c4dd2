"""What runs cost, as a ledger says, and what they cost together."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RunSpend:
    """What one run may cost and has used, as its ledger says.

    Attributes:
        epsilon_micro: millionths, for the whole schedule; None where the run adds no noise.
        delta_1e15: units of 1e-15, for the whole schedule.
        releases: length of the schedule.
        debits: releases made so far.

    """

    run: str
    epsilon_micro: int | None
    delta_1e15: int
    releases: int
    debits: int
    unit: str
    data_set: str


def compose_spends(runs: Sequence[RunSpend]) -> tuple[int | None, int]:
    """Add up what all runs may cost.

    Formal guarantee: basic composition, valid for runs chosen after seeing the results of earlier
    ones: the releases of all runs together are (sum of epsilons, sum of deltas)-DP per unit.

    Returns:
        epsilon in millionths (None if any run has no noise), delta in units of 1e-15.

    Source: Dwork and Roth 2014, theorem 3.16; Rogers et al. 2016 (1605.08294) for adaptivity.

    """
    epsilons = [run.epsilon_micro for run in runs]
    known = [epsilon for epsilon in epsilons if epsilon is not None]
    total = sum(known) if len(known) == len(epsilons) else None
    return total, sum(run.delta_1e15 for run in runs)


def format_micro(epsilon_micro: int | None) -> str:
    """Write an epsilon for people; None is a run without a finite one."""
    return "unbounded" if epsilon_micro is None else f"{epsilon_micro / 1e6:.6f}"
