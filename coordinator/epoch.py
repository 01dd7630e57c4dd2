"""Opening an epoch: every pinned member publishes keys and accepts the same roster."""

import logging
from collections.abc import Iterator

from coordinator.attempt import Members
from coordinator.channel import Channel
from coordinator.errors import MissingMembersError, RunError
from coordinator.member_heads import MemberHeads
from coordinator.settings import RunSettings
from coordinator.shared import next_epoch
from privacy.identity import SignatureError, Signed
from privacy.ledger.entries import LedgerError
from privacy.secagg.keys import KeyBundle, KeysLostError, RosterError
from privacy.secagg.roster import Roster, accept_reveals, accept_roster
from protos.epoch_messages import (
    KeyBundleMessage,
    RevealMessage,
    RevealsMessage,
    RosterMessage,
)
from protos.messages import Refusal
from protos.round_messages import Done, EpochRequest, OwnHead, OwnHeadShown
from protos.wire import Parcel, WireMessage

OPENINGS = 3
"""How often an epoch is opened for a member that starts again in the midst of it.

A member may see all nonces before it says that it lost its keys, and so have the graph drawn anew:
each roster is one of the 2^16 that the bounds of docs/secure_aggregation.md, section 9, count.
"""
_LOG = logging.getLogger("arion.coordinator")


class EpochLost(Exception):  # noqa: N818  (an outcome of the protocol)
    """Members of an epoch lost its keys; they reveal their nonces for one roster only."""


class _StartedAgain(Exception):  # noqa: N818  (an outcome of the protocol)
    """A member started again between two messages of an opening."""


def enter_epoch(
    settings: RunSettings,
    epoch: int | None,
    channel: Channel,
    heads: MemberHeads,
    *,
    expected: str | None = None,
) -> Members:
    """Relay an epoch's bundles, then its nonces, and show each member its newest ledger head.

    Where a member starts again meanwhile, this begins anew: members that still have their keys
    answer with the same bytes again.

    Args:
        settings: names the federation and pins its members.
        epoch: number of the epoch that is entered again; None opens new ones.
        channel: the way to the nodes.
        heads: of the members' own ledgers; what the members answer is kept there.
        expected: digest of the roster that the epoch had when it was entered before, hex.

    Returns:
        The verified roster, and where each member is reached.

    Raises:
        RunError: a member is missing, refuses, or starts again and again; the message says who.
        EpochLost: another roster than expected; nobody was shown it.

    """
    for _ in range(OPENINGS):
        number = next_epoch(settings.coordinator) if epoch is None else epoch
        try:
            return _enter(settings, number, channel, heads, expected)
        except _StartedAgain as error:
            _LOG.warning("epoch %d is opened anew: %s", number, error)
            last = error
    raise RunError(
        f"Expected every member to stay up while an epoch is opened, got {OPENINGS} openings in "
        f"which one started again. The last: {last} Look at its node, then resume the run."
    )


def _enter(
    settings: RunSettings,
    epoch: int,
    channel: Channel,
    heads: MemberHeads,
    expected: str | None,
) -> Members:
    bundles = _bundles(settings, epoch, channel)
    pins = {name: bytes.fromhex(key) for name, key in settings.members.items()}
    try:
        roster = accept_roster(list(bundles.values()), pins, None, epoch, settings.federation)
    except RosterError as error:
        raise RunError(f"Epoch {epoch} cannot be opened: {error}") from error
    if expected not in (None, roster.digest.hex()):
        raise EpochLost(f"Expected the members' keys of epoch {epoch}, got new ones.")
    addresses = {_name(signed): address for address, signed in bundles.items()}
    members = Members(roster, addresses)
    members.roster = _reveals(settings, members, list(bundles.values()), channel)
    _recall(settings, members, channel, heads)
    return members


def _reveals(
    settings: RunSettings, members: Members, bundles: list[Signed], channel: Channel
) -> Roster:
    """Show everyone the bundles, collect the nonces, and show everyone those."""
    what = f"the roster of epoch {members.roster.epoch}"
    by_name = sorted(bundles, key=_name)
    request = Parcel(RosterMessage(tuple(by_name)))
    shown: dict[str, Signed] = {}
    for name, parcel in _ask_all(settings, members, channel, ("roster", request, RevealMessage)):
        _check_agrees(name, what, parcel)
        assert isinstance(parcel.message, RevealMessage)
        shown[name] = parcel.message.signed
    _check_complete(set(shown), settings, "reveal their nonces")
    reveals = tuple(shown[name] for name in sorted(shown))
    try:
        roster, _ = accept_reveals(members.roster, reveals, None)
    except RosterError as error:
        raise RunError(f"Epoch {members.roster.epoch} cannot be opened: {error}") from error
    accepted = set()
    request = Parcel(RevealsMessage(reveals))
    for name, parcel in _ask_all(settings, members, channel, ("reveals", request, Done)):
        _check_agrees(name, what, parcel)
        accepted.add(name)
    _check_complete(accepted, settings, "accept the epoch's nonces")
    return roster


def _ask_all(
    settings: RunSettings,
    members: Members,
    channel: Channel,
    question: tuple[str, Parcel, type[WireMessage]],
) -> Iterator[tuple[str, Parcel]]:
    """Yield everyone's answers by name; a refusal is one."""
    action, request, kind = question
    requests = dict.fromkeys(members.addresses.values(), request)
    for address, parcel in channel.exchange(f"query.{action}", requests, kind, settings.deadline_s):
        yield members.name_at(address), parcel


def _recall(settings: RunSettings, members: Members, channel: Channel, heads: MemberHeads) -> None:
    """Show each member the newest head of its own ledger, and keep the one it answers with."""
    requests = {
        address: Parcel(OwnHeadShown(heads.newest(name)))
        for name, address in members.addresses.items()
    }
    recalled = set()
    for address, parcel in channel.exchange("query.recall", requests, OwnHead, settings.deadline_s):
        name = members.name_at(address)
        _check_agrees(name, "to go on with its ledger", parcel)
        assert isinstance(parcel.message, OwnHead)
        try:
            heads.keep(name, parcel.message.head)
        except (SignatureError, LedgerError) as error:
            raise RunError(f"The ledger head of {name} cannot be kept: {error}") from error
        recalled.add(name)
    _check_complete(recalled, settings, "say how far their ledgers are")


def _check_agrees(name: str, what: str, parcel: Parcel) -> None:
    if isinstance(parcel.message, Refusal):
        told = f"{name} refuses {what}: {parcel.message.detail}"
        raise _StartedAgain(told) if parcel.message.code == KeysLostError.code else RunError(told)


def _bundles(settings: RunSettings, epoch: int, channel: Channel) -> dict[int, Signed]:
    places = channel.addresses(len(settings.members), settings.deadline_s)
    request = Parcel(EpochRequest(settings.federation, epoch))
    requests = dict.fromkeys(places, request)
    found: dict[int, Signed] = {}
    for address, parcel in channel.exchange(
        "query.keys", requests, KeyBundleMessage, settings.deadline_s
    ):
        if isinstance(parcel.message, Refusal):
            raise RunError(f"A node refuses epoch {epoch}: {parcel.message.detail}")
        assert isinstance(parcel.message, KeyBundleMessage)
        found[address] = parcel.message.signed
    _check_complete({_name(signed) for signed in found.values()}, settings, "publish keys")
    return found


def _check_complete(present: set[str], settings: RunSettings, what: str) -> None:
    missing = sorted(set(settings.members) - present)
    if missing:
        raise MissingMembersError(
            f"Expected all {len(settings.members)} pinned members to {what} within "
            f"{settings.deadline_s:g} s, got none from {', '.join(missing)}. Start their nodes, "
            "then resume the run."
        )


def _name(signed: Signed) -> str:
    try:
        return KeyBundle.model_validate_json(signed.payload).node
    except ValueError:
        return "(unknown)"
