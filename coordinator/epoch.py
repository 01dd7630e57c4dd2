"""Opening an epoch: every pinned member publishes keys and accepts the same roster."""

from collections.abc import Mapping

from coordinator.attempt import Members
from coordinator.channel import Channel
from coordinator.member_heads import MemberHeads
from coordinator.settings import RunError, RunSettings
from privacy.identity import SignatureError, Signed
from privacy.ledger.entries import LedgerError
from privacy.secagg.keys import KeyBundle, RosterError, accept_roster
from protos.messages import KeyBundleMessage, Refusal, RosterMessage
from protos.round_messages import Done, EpochRequest, OwnHead, OwnHeadShown
from protos.wire import Parcel


def enter_epoch(settings: RunSettings, epoch: int, channel: Channel, heads: MemberHeads) -> Members:
    """Collect and relay the bundles of an epoch, and show each member its newest ledger head.

    Args:
        settings: names the federation and pins its members.
        epoch: number of the epoch; members that hold its keys answer with the same bundle again.
        channel: the way to the nodes.
        heads: of the members' own ledgers; what the members answer is kept there.

    Returns:
        The verified roster, and where each member is reached.

    Raises:
        RunError: a member is missing, or refuses; the message says who.

    """
    bundles = _bundles(settings, epoch, channel)
    pins = {name: bytes.fromhex(key) for name, key in settings.members.items()}
    try:
        roster = accept_roster(list(bundles.values()), pins, None, epoch, settings.federation)
    except RosterError as error:
        raise RunError(f"Epoch {epoch} cannot be opened: {error}") from error
    addresses = {_name(signed): address for address, signed in bundles.items()}
    request = Parcel(RosterMessage(tuple(addresses_sorted(addresses, bundles))))
    requests = dict.fromkeys(bundles, request)
    accepted = set()
    for address, parcel in channel.exchange("query.roster", requests, Done, settings.deadline_s):
        name = _name(bundles[address])
        _check_agrees(name, f"the roster of epoch {epoch}", parcel)
        accepted.add(name)
    _check_complete(accepted, settings, "accept the roster")
    members = Members(roster, addresses)
    _recall(settings, members, channel, heads)
    return members


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
        raise RunError(f"{name} refuses {what}: {parcel.message.detail}")


def addresses_sorted(addresses: Mapping[str, int], bundles: Mapping[int, Signed]) -> list[Signed]:
    """The bundles in the order of their members' names."""
    return [bundles[addresses[name]] for name in sorted(addresses)]


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
        raise RunError(
            f"Expected all {len(settings.members)} pinned members to {what} within "
            f"{settings.deadline_s:g} s, got none from {', '.join(missing)}. Start their nodes, "
            "then resume the run."
        )


def _name(signed: Signed) -> str:
    try:
        return KeyBundle.model_validate_json(signed.payload).node
    except ValueError:
        return "(unknown)"
