"""Opening an epoch: its members publish keys and accept the same roster.

Pinned members that are away are left out, as long as those that are there are enough for a round.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from coordinator.channel import Channel
from coordinator.epoch_record import EpochRecord
from coordinator.errors import (
    MissingMembersError,
    RefusedError,
    RunError,
    StartedAgainError,
)
from coordinator.member_heads import MemberHeads
from coordinator.members import Members
from coordinator.planning import least_members, most_of
from coordinator.settings import RunSettings
from privacy.identity import SignatureError, Signed
from privacy.ledger.entries import LedgerError
from privacy.secagg.keys import KeysLostError, RosterError
from privacy.secagg.reveals import accept_reveals, verify_reveal
from privacy.secagg.roster import Roster, accept_roster
from protos.epoch_messages import (
    KeyBundleMessage,
    RevealMessage,
    RevealsMessage,
    RosterMessage,
)
from protos.messages import Refusal
from protos.round_messages import Done, EpochRequest, OwnHead, OwnHeadShown
from protos.wire import Parcel, WireMessage

_LOG = logging.getLogger("arion.coordinator")


class EpochLost(Exception):  # noqa: N818  (an outcome of the protocol)
    """Members of an epoch lost its keys; they reveal their nonces for one roster only."""


@dataclass(frozen=True)
class Opening:
    """One opening of an epoch: what it is, and who is asked.

    Attributes:
        settings: names the federation and pins its members.
        number: of the epoch.
        channel: the way to the nodes.
        places: addresses that are asked.
        known: the epoch that is entered again; None where a new one is opened.

    """

    settings: RunSettings
    number: int
    channel: Channel
    places: Sequence[int]
    known: EpochRecord | None = None

    def enter(self, heads: MemberHeads) -> tuple[Members, EpochRecord]:
        """Relay bundles, then nonces, and show each member its newest ledger head.

        Args:
            heads: of the members' own ledgers; what the members answer is kept there.

        Returns:
            The verified roster with where its members are reached, and what they signed. Of an
            epoch that is entered again, members may be away: they have no address.

        Raises:
            MissingMembersError: too few members for a round.
            RefusedError: a member refuses; the message says who.
            StartedAgainError: a member did, or went away; its keys may be lost.
            EpochLost: another roster than the one known; nobody was shown it.
            RunError: the epoch cannot be opened.

        """
        bundles, addresses, spare = self._bundles()
        try:
            roster = self._roster(bundles)
        except RunError as error:
            raise self._misfit(bundles, addresses) or error from error
        if self.known is not None and roster.digest.hex() != self.known.digest:
            raise EpochLost(f"Expected the members' keys of epoch {self.number}, got new ones.")
        members = Members(roster, addresses, spare)
        reveals = self._reveals(members, bundles)
        self._recall(members, heads)
        return members, EpochRecord(self.number, roster.digest.hex(), bundles, reveals)

    def _bundles(self) -> tuple[dict[str, Signed], dict[str, int], list[int]]:
        """Ask for keys; return bundles by name, known ones among them, addresses, and spare ones.

        Of an epoch that is entered again, who was not in it or has left it is spare.
        """
        request = Parcel(EpochRequest(self.settings.federation, self.number))
        known = dict(self.known.bundles) if self.known else {}
        bundles: dict[str, Signed] = {}
        addresses: dict[str, int] = {}
        spare: list[int] = []
        for address, parcel in self._ask(self.places, "keys", request, KeyBundleMessage):
            if isinstance(parcel.message, Refusal):
                who, why = self.channel.label(address), parcel.message.detail
                told = f"{who} refuses epoch {self.number}: {why}"
                if self.known is None:
                    raise RefusedError(told, address)
                _LOG.warning("%s", told)
                spare.append(address)
                continue
            assert isinstance(parcel.message, KeyBundleMessage)
            name = self._verified(parcel.message.signed, address)
            if known and name not in known:
                spare.append(address)
            else:
                bundles[name], addresses[name] = parcel.message.signed, address
        self._check_enough(set(addresses), len(spare))
        if self.known is None:
            for name in self._surplus(sorted(addresses)):
                del bundles[name]
                spare.append(addresses.pop(name))
        return known | bundles, addresses, spare

    def _verified(self, signed: Signed, address: int) -> str:
        """Return whose bundle it is; RefusedError where it is none."""
        try:
            return self._roster({"": signed}).names[0]
        except (RunError, EpochLost) as error:
            raise RefusedError(str(error), address) from error

    def _misfit(
        self, bundles: Mapping[str, Signed], addresses: Mapping[str, int]
    ) -> RefusedError | None:
        """Find the one whose bundle does not fit the others, such as without an ML-KEM-768 key."""
        for out in addresses:
            try:
                self._roster({name: each for name, each in bundles.items() if name != out})
            except RunError:
                continue
            return RefusedError(
                f"The keys of {out} do not fit those of all others.", addresses[out]
            )
        return None

    def _surplus(self, names: list[str]) -> list[str]:
        """Return whom to leave out, others in each epoch, so that the rest divides into groups."""
        over = len(names) - most_of(self.settings, len(names))
        first = self.number % len(names)
        return (names[first:] + names[:first])[:over]

    def _roster(self, bundles: Mapping[str, Signed]) -> Roster:
        settings = self.settings
        pins = {name: bytes.fromhex(key) for name, key in settings.members.items()}
        least = len(bundles)  # they are enough
        try:
            return accept_roster(
                list(bundles.values()), pins, None, self.number, settings.federation, least=least
            )
        except RosterError as error:
            raise self._cannot(error) from error

    def _cannot(self, error: RosterError) -> EpochLost | RunError:
        told = f"Epoch {self.number} cannot be opened: {error}"
        return RunError(told) if self.known is None else EpochLost(told)

    def _reveals(self, members: Members, bundles: Mapping[str, Signed]) -> dict[str, Signed]:
        """Show everyone the bundles, collect the nonces, and show everyone those."""
        what, places = f"the roster of epoch {self.number}", members.addresses.values()
        request = Parcel(RosterMessage(tuple(bundles[name] for name in sorted(bundles))))
        shown: dict[str, Signed] = {}
        for address, parcel in self._ask(places, "roster", request, RevealMessage):
            name = _check_agrees(members, address, what, parcel)
            assert isinstance(parcel.message, RevealMessage)
            try:
                verify_reveal(parcel.message.signed, members.roster, name)
            except RosterError as error:
                raise RefusedError(f"{name} shows no nonce: {error}", address) from error
            shown[name] = parcel.message.signed
        _check_all(members, set(shown), "reveal its nonce")
        by_name = {**(self.known.reveals if self.known else {}), **shown}
        reveals = tuple(by_name[name] for name in sorted(by_name))
        try:
            members.roster, _ = accept_reveals(members.roster, reveals, None)
        except RosterError as error:
            raise self._cannot(error) from error
        request = Parcel(RevealsMessage(reveals))
        accepted = {
            _check_agrees(members, address, what, parcel)
            for address, parcel in self._ask(places, "reveals", request, Done)
        }
        _check_all(members, accepted, "accept the epoch's nonces")
        return by_name

    def _recall(self, members: Members, heads: MemberHeads) -> None:
        """Show each member the newest head of its own ledger, and keep the one it answers with."""
        requests = {
            address: Parcel(OwnHeadShown(heads.newest(name)))
            for name, address in members.addresses.items()
        }
        recalled = set()
        deadline_s = self.settings.deadline_s
        for address, parcel in self.channel.exchange("query.recall", requests, OwnHead, deadline_s):
            name = _check_agrees(members, address, "to go on with its ledger", parcel)
            assert isinstance(parcel.message, OwnHead)
            try:
                heads.keep(name, parcel.message.head)
            except (SignatureError, LedgerError) as error:
                told = f"The ledger head of {name} cannot be kept: {error}"
                raise RefusedError(told, address) from error
            recalled.add(name)
        _check_all(members, recalled, "say how far its ledger is")

    def _ask(
        self, places: Iterable[int], action: str, request: Parcel, kind: type[WireMessage]
    ) -> Iterator[tuple[int, Parcel]]:
        requests = dict.fromkeys(places, request)
        return self.channel.exchange(f"query.{action}", requests, kind, self.settings.deadline_s)

    def _check_enough(self, present: Set[str], spare: int) -> None:
        settings = self.settings
        missing = sorted(set(settings.members) - present)
        count = len(settings.members) - len(missing)
        least = least_members(settings)
        if count < least:
            if count + spare >= least:
                raise EpochLost(
                    f"Expected members with the keys of epoch {self.number}, got others."
                )
            raise MissingMembersError(
                f"Expected at least {least} of the {len(settings.members)} pinned members to "
                f"publish keys within {settings.deadline_s:g} s, got none from "
                f"{', '.join(missing)}. Start their nodes, then resume the run."
            )
        if missing:
            _LOG.warning("epoch %d goes on without %s", self.number, ", ".join(missing))


def _check_agrees(members: Members, address: int, what: str, parcel: Parcel) -> str:
    """Return who answered; raise where it was with a refusal."""
    name = members.name_at(address)
    if isinstance(parcel.message, Refusal):
        told = f"{name} refuses {what}: {parcel.message.detail}"
        if parcel.message.code == KeysLostError.code:
            raise StartedAgainError(told, again=[address])
        raise RefusedError(told, address)
    return name


def _check_all(members: Members, answered: Set[str], what: str) -> None:
    if silent := sorted(set(members.addresses) - answered):
        raise members.fell_silent(silent, what)
