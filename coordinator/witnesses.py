"""The coordinator's ledger head after each attempt, countersigned by every member that is there.

With its countersignature a member sends the newest head of its own ledger, which is kept.
"""

import logging
from collections.abc import Mapping, Set

from coordinator.channel import Channel
from coordinator.errors import RefusedError
from coordinator.member_heads import MemberHeads
from coordinator.members import Members
from coordinator.shared import SharedLedger
from privacy.identity import IdentityKey, SignatureError, Signed
from privacy.ledger.entries import LedgerError
from privacy.ledger.log import LedgerLog
from protos.messages import Refusal
from protos.round_messages import HeadCountersigned, HeadHeld, HeadOffer, HeadQuery
from protos.wire import Parcel

LONGEST_TURN_S = 30.0
_LOG = logging.getLogger("arion.coordinator")


class Witnesses:
    """Collects countersignatures; remembers which head each member holds.

    Args:
        ledger: the coordinator's.
        key: signs heads.
        members: pinned identity keys by name, hex.
        channel: the way to the members.
        heads: of the members' own ledgers.

    """

    def __init__(
        self,
        ledger: SharedLedger,
        key: IdentityKey,
        members: Mapping[str, str],
        channel: Channel,
        heads: MemberHeads,
    ) -> None:
        self._ledger, self._key, self._channel = ledger, key, channel
        self._member_heads = heads
        self._pins = {name: bytes.fromhex(pin) for name, pin in members.items()}
        self._held: dict[str, int] = {}
        self._refusing: set[str] = set()

    def collect(
        self, members: Members, deadline_s: float, present: Set[str] | None = None
    ) -> tuple[str, ...]:
        """Sign a head and have the members countersign it.

        Other runs wait meanwhile: a member takes a head that does not extend the one it holds for
        a fork, so heads and proofs must reach it in the ledger's order.

        Args:
            members: of the epoch.
            deadline_s: how long to wait for each of two answers, 30 at most.
            present: who is asked; None asks all. Others are shown a later head.

        Returns:
            Members that did; one that is away or refuses does not hold up the run.

        Raises:
            RestoredLedgerError: a member holds a head that this ledger does not; nothing is signed.

        """
        deadline_s = min(deadline_s, LONGEST_TURN_S)
        self._refusing.clear()
        with self._ledger.turn() as log:
            if self._ledger.was_changed():
                self._held.clear()
            self._ledger.verify_not_restored(self._key.public_key)
            self._ask_held(log, members, deadline_s, present)
            head = log.sign_head(self._key)
            asked = self._held.keys() & (members.addresses if present is None else present)
            offers = {  # who does not answer may hold either head afterwards
                members.addresses[name]: Parcel(HeadOffer(head, _proof(log, self._held.pop(name))))
                for name in sorted(asked & set(members.addresses))
            }
            signed = []
            for address, parcel in self._channel.exchange(
                "query.countersign", offers, HeadCountersigned, deadline_s
            ):
                name = members.name_at(address)
                if self._keep(log, name, parcel):
                    self._held[name] = log.size
                    signed.append(name)
                else:
                    self._refusing.add(name)
        return tuple(sorted(signed))

    def show_all(self, members: Members, deadline_s: float) -> None:
        """Have every member of an epoch countersign the newest head, before anything is planned.

        Raises:
            RestoredLedgerError: a member holds a head that this ledger does not.
            RefusedError: a member refuses.
            StartedAgainError: a member does not answer any more.

        """
        missing = set(members.addresses) - set(self.collect(members, deadline_s))
        if refusing := sorted(missing & self._refusing):
            raise RefusedError(
                f"Expected all {len(members.addresses)} members to countersign the coordinator's "
                f"ledger before a round is planned, got refusals of {', '.join(refusing)}. The log "
                "says why. Settle it with them, then resume the run.",
                members.addresses[refusing[0]],
            )
        if missing:
            raise members.fell_silent(missing, "countersign a head")

    def _ask_held(
        self, log: LedgerLog, members: Members, deadline_s: float, present: Set[str] | None
    ) -> None:
        unknown = {
            name: at
            for name, at in members.addresses.items()
            if name not in self._held and (present is None or name in present)
        }
        requests = dict.fromkeys(unknown.values(), Parcel(HeadQuery(log.name)))
        for address, parcel in self._channel.exchange("query.head", requests, HeadHeld, deadline_s):
            name = members.name_at(address)
            if isinstance(parcel.message, HeadHeld):
                self._note_held(name, parcel.message.head)

    def _note_held(self, name: str, held: Signed | None) -> None:
        """Note how much of the ledger a member holds; stop where we signed more than we hold."""
        if held is None:
            self._held[name] = 0
            return
        try:
            self._held[name] = self._ledger.hold_against(self._key.public_key, held)
        except (SignatureError, LedgerError) as error:
            _LOG.error("head that %s holds: %s", name, error)
            self._refusing.add(name)

    def _keep(self, log: LedgerLog, name: str, parcel: Parcel) -> bool:
        if isinstance(parcel.message, Refusal):
            _LOG.error("%s does not countersign: %s", name, parcel.message.detail)
            return False
        assert isinstance(parcel.message, HeadCountersigned)
        try:
            log.add_countersignature(self._pins[name], parcel.message.signed)
            self._member_heads.keep(name, parcel.message.own)
        except (SignatureError, LedgerError) as error:
            _LOG.error("countersignature of %s: %s", name, error)
            return False
        return True


def _proof(log: LedgerLog, size: int) -> tuple[bytes, ...]:
    return tuple(log.consistency_proof(size)) if size else ()
