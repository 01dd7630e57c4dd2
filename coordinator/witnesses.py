"""The coordinator's ledger head after each attempt, countersigned by every member that is there.

With its countersignature a member sends the newest head of its own ledger, which is kept.
"""

import logging
from collections.abc import Mapping

from coordinator.attempt import Members
from coordinator.channel import Channel
from coordinator.member_heads import MemberHeads
from privacy.identity import IdentityKey, SignatureError
from privacy.ledger.entries import LedgerError
from privacy.ledger.log import LedgerLog
from protos.messages import Refusal
from protos.round_messages import HeadCountersigned, HeadHeld, HeadOffer, HeadQuery
from protos.wire import Parcel

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
        ledger: LedgerLog,
        key: IdentityKey,
        members: Mapping[str, str],
        channel: Channel,
        heads: MemberHeads,
    ) -> None:
        self._ledger, self._key, self._channel = ledger, key, channel
        self._member_heads = heads
        self._pins = {name: bytes.fromhex(pin) for name, pin in members.items()}
        self._held: dict[str, int] = {}

    def collect(self, members: Members, deadline_s: float) -> tuple[str, ...]:
        """Sign a head and have the members countersign it.

        Returns:
            Members that did; one that is away or refuses does not hold up the run.

        """
        head = self._ledger.sign_head(self._key)
        self._ask_held(members, deadline_s)
        offers = {
            members.addresses[name]: Parcel(HeadOffer(head, self._proof(size)))
            for name, size in self._held.items()
        }
        signed = []
        for address, parcel in self._channel.exchange(
            "query.countersign", offers, HeadCountersigned, deadline_s
        ):
            name = members.name_at(address)
            if self._keep(name, parcel):
                self._held[name] = self._ledger.size
                signed.append(name)
        return tuple(sorted(signed))

    def _proof(self, size: int) -> tuple[bytes, ...]:
        return tuple(self._ledger.consistency_proof(size)) if size else ()

    def _ask_held(self, members: Members, deadline_s: float) -> None:
        unknown = {name: at for name, at in members.addresses.items() if name not in self._held}
        requests = dict.fromkeys(unknown.values(), Parcel(HeadQuery(self._ledger.name)))
        for address, parcel in self._channel.exchange("query.head", requests, HeadHeld, deadline_s):
            if isinstance(parcel.message, HeadHeld) and parcel.message.size <= self._ledger.size:
                self._held[members.name_at(address)] = parcel.message.size

    def _keep(self, name: str, parcel: Parcel) -> bool:
        if isinstance(parcel.message, Refusal):
            _LOG.error("%s does not countersign: %s", name, parcel.message.detail)
            return False
        assert isinstance(parcel.message, HeadCountersigned)
        try:
            self._ledger.add_countersignature(self._pins[name], parcel.message.signed)
            self._member_heads.keep(name, parcel.message.own)
        except (SignatureError, LedgerError) as error:
            _LOG.error("countersignature of %s: %s", name, error)
            return False
        return True
