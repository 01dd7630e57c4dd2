"""What the coordinator takes from a committee: signatures on its set, shares of its secrets.

Symbols: A the survivors. An answer that is of no use is set aside and never keeps the others' from
being used.
"""

from collections.abc import Iterable

from privacy.secagg.aborts import AbortCode, SecAggAbort
from privacy.secagg.graph import Group
from privacy.secagg.header import SurvivorSet, verify_survivor_signature
from privacy.secagg.roster import Roster
from protos.messages import SurvivorSignature, UnmaskReply

Shares = dict[tuple[str, str], bytes]
"""One member's shares by (dealer, dealer or dropped peer)."""


def sort_signatures(
    signatures: Iterable[SurvivorSignature], survivors: SurvivorSet, group: Group, roster: Roster
) -> tuple[dict[str, SurvivorSignature], list[str]]:
    """Part valid signatures on the set from valid ones on others; what is not valid is left out.

    Args:
        signatures: as they came, of whomever.
        survivors: A, as the coordinator fixed it.
        group: whose committee signs.
        roster: with the members' pinned keys.

    Returns:
        Signatures on A by member, and members that signed another set of the same plan.

    """
    valid: dict[str, SurvivorSignature] = {}
    elsewhere: list[str] = []
    for signature in signatures:
        if signature.plan_digest != survivors.plan_digest or signature.node not in group.committee:
            continue
        if not verify_survivor_signature(signature, roster):
            continue
        if signature.set_digest == survivors.digest:
            valid[signature.node] = signature
        else:
            elsewhere.append(signature.node)
    return valid, elsewhere


def sort_replies(
    replies: Iterable[UnmaskReply], survivors: SurvivorSet, group: Group
) -> tuple[dict[str, Shares], list[SecAggAbort]]:
    """Read shares by member; who sent no such thing is left out, as if it had not answered.

    Args:
        replies: as they came, of whomever.
        survivors: A, certified.
        group: whose committee answers.

    Returns:
        Shares by member, and for each reply that was left out a BAD_REPLY that names its sender.

    """
    usable: dict[str, Shares] = {}
    wrong = []
    for reply in replies:
        try:
            usable[reply.node] = _read_reply(reply, survivors, group)
        except SecAggAbort as abort:
            wrong.append(abort)
    return usable, wrong


def _dropped(name: str, survivors: SurvivorSet, group: Group) -> list[str]:
    """Neighbours of a survivor that are not in the sum, sorted."""
    return sorted(group.neighbours[name] - survivors.headers.keys())


def _read_reply(reply: UnmaskReply, survivors: SurvivorSet, group: Group) -> Shares:
    """Shares of one reply, after a check that they are on our set."""
    about = (reply.plan_digest, reply.set_digest)
    well_formed = all(
        entry.survivor in survivors.headers
        and [edge.dropped for edge in entry.edge_shares]
        == _dropped(entry.survivor, survivors, group)
        for entry in reply.shares
    )
    if (
        about != (survivors.plan_digest, survivors.digest)
        or reply.node not in group.committee
        or not well_formed
    ):
        raise SecAggAbort(
            AbortCode.BAD_REPLY,
            f"Expected shares of the certified set, got others from {reply.node!r}.",
            (reply.node,),
        )
    shares = {(entry.survivor, entry.survivor): entry.own_share for entry in reply.shares}
    for entry in reply.shares:
        for edge in entry.edge_shares:
            shares[entry.survivor, edge.dropped] = edge.share
    return shares
