"""The epoch that a run is in: entered where it is needed, left where members come, go or forget.

Who is away is left out of an epoch, so that rounds do not wait for it, and in the next one after it
came back.
"""

import logging
from collections.abc import Sequence, Set

from coordinator.attempt import AttemptReport
from coordinator.channel import Channel
from coordinator.epoch import Opening
from coordinator.epoch_record import EpochRecord
from coordinator.errors import MissingMembersError, RefusedError, RunError, StartedAgainError
from coordinator.member_heads import MemberHeads
from coordinator.members import Members
from coordinator.patience import Patience
from coordinator.planning import least_answers, least_members, most_of
from coordinator.settings import RunSettings
from coordinator.shared import next_epoch
from coordinator.store import RunStore
from coordinator.witnesses import Witnesses
from privacy.rounds import RoundPlan
from privacy.secagg.header import RefusalCode

OPENINGS = 3
"""How often an epoch is opened for members that start again in the midst of it.

A member may see all nonces before it says that it lost its keys, and so have the graph drawn anew:
each roster is one of the 2^16 that the bounds of docs/secure_aggregation.md, section 9, count.
"""
_LOG = logging.getLogger("arion.coordinator")


class Epochs:
    """The epochs of one run; in one of them at a time, or in none.

    Args:
        settings: of the run.
        channel: the way to the nodes.
        heads: of the members' own ledgers.
        witnesses: countersign the coordinator's ledger before anything is planned in an epoch.
        store: keeps what an epoch's members signed.

    Attributes:
        members: of the epoch that the run is in, or None.

    """

    def __init__(
        self,
        settings: RunSettings,
        channel: Channel,
        heads: MemberHeads,
        witnesses: Witnesses,
        store: RunStore,
    ) -> None:
        self._settings, self._channel, self._heads = settings, channel, heads
        self._witnesses, self._store = witnesses, store
        self._refused: dict[int, str] = {}
        self._patience, self._patience_in_rounds = Patience(), Patience()
        self._has_waited = self._was_open = False
        self.members: Members | None = None

    def of(self, plan: RoundPlan) -> Members:
        """Return the members of the epoch that a plan names, which is entered again where need be.

        Raises:
            EpochLost: its keys are lost.
            RunError: too few members are there, or one refuses; the message says who.

        """
        return self._enter(plan)

    def for_new_plan(self) -> Members:
        """Return an epoch's members; a new one's where members came, or are too few for a round.

        An attempt that cannot succeed would cost budget.

        Raises:
            RunError: see `of`.

        """
        there = self._channel.addresses(0, 0.0)
        self._patience.count(there)
        self._patience_in_rounds.count(there)
        if self.members is not None and (self._came(self.members) or self._is_short(self.members)):
            self.members = None
        return self._enter(None)

    def hung(self) -> Set[int]:
        """Return addresses of members that let earlier rounds wait, and are not due again."""
        assert self.members is not None, "a plan's epoch is entered first"
        places = set(self.members.addresses.values())
        return places - set(self._patience_in_rounds.due(places))

    def leave_after(self, report: AttemptReport) -> None:
        """Leave the epoch where a member lost its keys, or is gone and the others are enough."""
        if self.members is None:
            return
        places = self.members.addresses
        answered, silent = report.heard - report.silent, report.silent
        self._patience_in_rounds.note(
            [places[name] for name in answered], [places[name] for name in silent]
        )
        lost = any(code == RefusalCode.OTHER_ROSTER for code, _ in report.refusals.values())
        if lost or self._went(self.members):
            self.members = None

    def _came(self, members: Members) -> bool:
        there, known = set(self._reachable()), set(members.addresses.values())
        if len(known) == len(self._settings.members) and known <= there:
            return False
        back = self._patience.due(there - known)
        return bool(back) and most_of(self._settings, len(there & known) + len(back)) > (
            len(there & known)
        )

    def _went(self, members: Members) -> bool:
        gone = set(members.addresses.values()) - set(self._reachable())
        left = len(members.addresses) - len(gone)
        return bool(gone) and left >= least_members(self._settings)

    def _is_short(self, members: Members) -> bool:
        there = set(self._reachable()) & set(members.addresses.values())
        size = len(members.roster.names) // self._settings.groups
        return len(there) < least_answers(self._settings, size)

    def _reachable(self) -> Sequence[int]:
        return [at for at in self._channel.addresses(0, 0.0) if at not in self._refused]

    def _enter(self, plan: RoundPlan | None) -> Members:
        if self.members is None:
            self.members = self._open(plan)
            self._was_open = True
        return self.members

    def _open(self, plan: RoundPlan | None) -> Members:
        """Open an epoch; anew where a member starts again, and without one that falls silent."""
        last, silent, again, openings = "", frozenset[int](), frozenset[int](), 0
        while openings < OPENINGS:
            opening = self._opening(plan, silent)
            try:
                members, record = opening.enter(self._heads)
                self._store.save_epoch(record)
                self._witnesses.show_all(members, self._settings.deadline_s)
            except StartedAgainError as error:
                _LOG.warning("the epoch is opened anew: %s", error)
                last, out = str(error), error.silent | (error.again & again)
                openings += not out - silent  # each is left out once, so this ends
                silent, again = silent | out, again | error.again
            except MissingMembersError as error:
                if not self._refused:
                    raise
                refusals = "; ".join(self._refused.values())
                raise MissingMembersError(
                    f"{error} Some are there and refused: {refusals}"
                ) from error
            except RefusedError as error:
                self._leave_out(error)  # each is asked no more, so this ends
            else:
                answered = {*members.addresses.values(), *members.spare}
                self._patience.note(answered, (set(opening.places) | silent) - answered)
                return members
        raise RunError(
            f"Expected every member to stay up while an epoch is opened, got {OPENINGS} openings "
            f"in which one did not. The last: {last} Look at its node, then resume the run."
        )

    def _opening(self, plan: RoundPlan | None, without: Set[int]) -> Opening:
        settings = self._settings
        there = self._wait(without)
        places = [at for at in self._patience.due(there) if at not in without]
        if len(places) < least_members(settings):
            places = list(there)
        if plan is None:
            number = next_epoch(settings.coordinator)
            return Opening(settings, number, self._channel, places)
        known = self._store.load_epoch()
        if known is None or known.digest != plan.roster_digest:
            known = EpochRecord(plan.epoch, plan.roster_digest, {}, {})
        return Opening(settings, plan.epoch, self._channel, places, known)

    def _wait(self, without: Set[int]) -> Sequence[int]:
        """Wait for members, at first for all of them; return the addresses to ask."""
        settings = self._settings
        count = least_members(settings) if self._has_waited else len(settings.members)
        self._has_waited = True
        there = self._channel.addresses(0, 0.0)
        idle = set(there) - (set(self._patience.due(self._reachable())) - without)
        count = min(count + len(idle), len(settings.members))  # where all are there, nobody comes
        if len(there) < count:
            _LOG.info(
                "%d of %d members are there: waiting for %d up to %g s",
                len(there),
                len(settings.members),
                count,
                settings.deadline_s,
            )
        self._channel.addresses(count, settings.deadline_s)
        return self._reachable()

    def _leave_out(self, refusal: RefusedError) -> None:
        """Go on without a member that came back and refuses; it is asked when the run is resumed.

        Before the first epoch of a process it ends the run: whoever starts one shall know.
        """
        if not self._was_open:
            raise refusal
        _LOG.error("the run goes on without a member: %s", refusal)
        self._refused[refusal.address] = str(refusal)
