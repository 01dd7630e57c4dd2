"""Who is who in an epoch, and where."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from coordinator.errors import StartedAgainError
from privacy.secagg.roster import Roster


@dataclass
class Members:
    """Who is who in an epoch.

    Attributes:
        roster: verified.
        addresses: of those of the roster that are there.
        spare: addresses of those that answered and are not in the roster: one too many for the
            groups, or, of an epoch that is entered again, new to it or gone from it.

    """

    roster: Roster
    addresses: Mapping[str, int]
    spare: Collection[int] = ()

    def name_at(self, address: int) -> str:
        """The member at an address."""
        return next(name for name, place in self.addresses.items() if place == address)

    def fell_silent(self, names: Iterable[str], what: str) -> StartedAgainError:
        """Return the error of members that did not do what was asked."""
        who = sorted(names)
        return StartedAgainError(
            f"{', '.join(who)} did not {what}.", [self.addresses[name] for name in who]
        )
