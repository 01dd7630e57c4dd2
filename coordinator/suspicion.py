"""Who spoils sums: with groups drawn anew, a member that does is in every group that is spoilt."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from scipy.stats import binom

from coordinator.attempts import Attempt

_LOG = logging.getLogger("arion.coordinator")
_LEVEL = 0.01


@dataclass(frozen=True)
class Suspect:
    """A member that was in spoilt groups more often than chance explains.

    Attributes:
        name: the member.
        spoilt: attempts in which its group was spoilt.
        attempts: attempts in which its group was opened or spoilt.
        p_value: chance of so many for a member that is in groups at random.

    """

    name: str
    spoilt: int
    attempts: int
    p_value: float


def suspects(history: Sequence[tuple[Collection[str], Collection[str]]]) -> list[Suspect]:
    """Name members whose groups were spoilt too often, the most suspicious first.

    An innocent member shares a group with a guilty one less often than a member's group is spoilt
    at all, so the binomial tail at that rate overstates its p-value.

    Args:
        history: of each attempt, all members of the groups in question, and those of spoilt ones.

    Returns:
        Members whose p-value, times the number of members, is below 1%: fewer than one run in a
        hundred accuses an innocent. One group for all tells nothing, and accuses nobody.

    """
    took_part = [name for members, _ in history for name in members]
    names = sorted(set(took_part))
    share = sum(len(spoilt) for _, spoilt in history) / max(1, len(took_part))
    found = []
    for name in names:
        attempts = sum(name in members for members, _ in history)
        count = sum(name in spoilt for _, spoilt in history)
        p_value = float(binom.sf(count - 1, attempts, share))
        if p_value * len(names) < _LEVEL:
            found.append(Suspect(name, count, attempts, p_value))
    return sorted(found, key=lambda suspect: (suspect.p_value, suspect.name))


def warn_of_suspects(attempts: Sequence[Attempt]) -> None:
    """Write into the log whom a run's attempts make suspicious."""
    for suspect in suspects([(at.survivors + at.spoilt, at.spoilt) for at in attempts]):
        _LOG.warning(
            "%s was in %d spoilt groups of %d, by chance with p = %.1g: ask its institution",
            suspect.name,
            suspect.spoilt,
            suspect.attempts,
            suspect.p_value,
        )
