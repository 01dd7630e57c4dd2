"""What a malicious coordinator, or up to c colluding members, may try with survivor sets."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from privacy.identity import Signed
from privacy.secagg.aborts import AbortCode
from privacy.secagg.coordinator import StreamingSum
from privacy.secagg.header import (
    Header,
    RefusalCode,
)
from privacy.secagg.packets import packet_key, packet_tree
from protos.messages import SealedPacket
from tests.secagg.hostile import aborted, forge, headers_of, refused, resign


def test_a_member_signs_one_set_per_plan(federation: Any) -> None:
    plan = federation.plan()
    total = federation.collect(plan)
    node = federation.nodes["node-0"]
    first = node.sign_survivors(plan, headers_of(total))
    fewer = headers_of(total, ["node-0", "node-1", "node-2"])
    refused(RefusalCode.SECOND_SET, lambda: node.sign_survivors(plan, fewer))
    assert node.sign_survivors(plan, headers_of(total)) == first


def test_equivocated_sets_reach_no_quorum(make_federation: Callable[..., Any]) -> None:
    federation = make_federation(9, 4, 2)
    plan, names = federation.plan(), federation.names
    total = federation.collect(plan)
    everyone, fewer = headers_of(total), headers_of(total, names[:8])
    for name in names[:4]:
        federation.nodes[name].sign_survivors(plan, everyone)
    for name in names[4:7]:
        federation.nodes[name].sign_survivors(plan, fewer)
    colluders = names[7:]  # they sign both sets
    total.close()
    request = replace(
        total.unmask_request("node-0"),
        certificate=forge(federation, plan, everyone, [*names[:3], *colluders]),
    )
    assert len(request.certificate) == plan.quorum - 1
    refused(RefusalCode.NO_QUORUM, lambda: federation.nodes["node-0"].unmask(plan, request))


def test_both_kinds_of_share_of_one_member_are_never_given(federation: Any) -> None:
    plan = federation.plan()
    total = federation.collect(plan)
    total.certify(federation.sign(plan, total))
    node = federation.nodes["node-0"]
    given = node.unmask(plan, total.unmask_request("node-0"))
    assert all(entry.edge_shares == () for entry in given.shares)
    fewer = headers_of(total, ["node-0", "node-1", "node-2"])
    everyone = total.unmask_request("node-0")
    request = replace(
        everyone,
        headers=fewer,
        certificate=forge(federation, plan, fewer, federation.names),
        packets=everyone.packets[:3],
    )
    refused(RefusalCode.NOT_SIGNED, lambda: node.unmask(plan, request))


def test_unmasking_before_signing_is_refused(federation: Any) -> None:
    plan = federation.plan()
    total = federation.collect(plan)
    total.close()
    request = replace(
        total.unmask_request("node-0"),
        certificate=forge(federation, plan, headers_of(total), federation.names),
    )
    refused(RefusalCode.NOT_SIGNED, lambda: federation.nodes["node-0"].unmask(plan, request))


@pytest.mark.parametrize("forged_node", ["node-1", "node-9"])
def test_a_repeated_or_foreign_signature_counts_for_nothing(
    federation: Any, forged_node: str
) -> None:
    plan = federation.plan()
    total = federation.collect(plan)
    signatures = federation.sign(plan, total)
    forged = replace(signatures[0], node=forged_node)
    request = (
        replace(total.unmask_request("node-0"), certificate=(signatures[0], forged, signatures[2]))
        if forged_node == "node-1"
        else replace(total.unmask_request("node-0"), certificate=(*signatures[:2], forged))
    )
    refused(RefusalCode.NO_QUORUM, lambda: federation.nodes["node-0"].unmask(plan, request))


def test_fewer_than_n_min_survivors(federation: Any) -> None:
    plan = federation.plan()
    total = federation.collect(plan)
    few = headers_of(total, ["node-0", "node-1"])
    refused(RefusalCode.BELOW_N_MIN, lambda: federation.nodes["node-0"].sign_survivors(plan, few))
    short = federation.collect(federation.plan(2), gone=["node-2", "node-3"])
    aborted(AbortCode.BELOW_N_MIN, short.close)


def test_one_survivor_listed_three_times(federation: Any) -> None:
    plan = federation.plan()
    header = headers_of(federation.collect(plan))[0]
    refused(
        RefusalCode.BAD_HEADER,
        lambda: federation.nodes["node-0"].sign_survivors(plan, [header] * 3),
    )


def test_a_replayed_and_an_older_round(federation: Any) -> None:
    node = federation.nodes["node-0"]
    for plan in (federation.plan(5), federation.plan(5), federation.plan(4, attempt=3)):
        words = np.zeros(plan.vector_length, "<u2")
        if plan.round == 5 and not node.store.is_claimed(plan.digest()):
            node.seal_upload(words, plan)
            continue
        refused(RefusalCode.REPLAYED, lambda: node.seal_upload(words, plan))  # noqa: B023
        assert not words.any()


def test_two_models_in_one_round(federation: Any) -> None:
    plans = [federation.plan(model_digest=letter * 64) for letter in "ab"]
    headers = [
        federation.upload(name, plans[place % 2])[0].header
        for place, name in enumerate(federation.names)
    ]
    node = federation.nodes["node-0"]
    refused(RefusalCode.OTHER_PLAN, lambda: node.sign_survivors(plans[0], headers))
    refused(RefusalCode.OTHER_PLAN, lambda: node.sign_survivors(plans[1], headers))


def test_a_plan_for_another_roster_or_part_of_it(federation: Any) -> None:
    words = np.zeros(federation.plan().vector_length, "<u2")
    for change in ({"roster_digest": "0" * 64}, {"cohort": federation.names[:3]}):
        plan = federation.plan(**change)
        refused(
            RefusalCode.OTHER_ROSTER,
            lambda: federation.nodes["node-0"].seal_upload(words, plan),  # noqa: B023
        )


def test_a_claimed_dropout_stays_masked(federation: Any) -> None:
    plan = federation.plan()
    liar = StreamingSum(plan, federation.roster)
    uploads = {name: federation.upload(name, plan) for name in federation.names}
    for name in federation.names[:3]:
        liar.add(*uploads[name])
    headers = liar.close().headers
    refused(
        RefusalCode.NOT_LISTED, lambda: federation.nodes["node-3"].sign_survivors(plan, headers)
    )
    liar.certify(federation.sign(plan, liar))
    replies = [federation.nodes[x].unmask(plan, liar.unmask_request(x)) for x in liar.uploaded]
    assert "node-3" not in {entry.survivor for reply in replies for entry in reply.shares}
    opened = liar.open_sum(replies)
    np.testing.assert_array_equal(opened.words, federation.expected(plan, liar.uploaded))


def test_an_unpinned_member_is_no_survivor(federation: Any) -> None:
    plan = federation.plan()
    total = federation.collect(plan)
    template = Header.model_validate_json(headers_of(total)[0].payload)
    # R = identity, S = 0 verifies under a key of order 4 for one message in four: the all-zero
    # key, which a careless default for a missing pin would be, signs for everyone.
    signature = bytes([1]) + bytes(63)
    for place in range(64):
        sybil = template.model_copy(update={"node": "sybil", "words": f"{place:064x}"})
        headers = [*headers_of(total)[:2], Signed(sybil.payload(), signature)]
        refused(
            RefusalCode.BAD_HEADER,
            lambda: federation.nodes["node-0"].sign_survivors(plan, headers),  # noqa: B023
        )


def test_a_member_whose_store_was_rolled_back_signs_nothing(federation: Any) -> None:
    plan = federation.plan()
    headers = headers_of(federation.collect(plan))
    node = federation.nodes["node-0"]
    node.store.plans.clear()
    refused(RefusalCode.OTHER_PLAN, lambda: node.sign_survivors(plan, headers))


def test_a_header_signed_by_another_member(federation: Any) -> None:
    plan = federation.plan()
    headers = list(headers_of(federation.collect(plan)))
    headers[1] = federation.identities["node-2"].sign("header", headers[1].payload)
    refused(
        RefusalCode.BAD_HEADER,
        lambda: federation.nodes["node-0"].sign_survivors(plan, headers),
    )


def test_forged_signatures_make_no_certificate(federation: Any) -> None:
    plan = federation.plan()
    total = federation.collect(plan)
    signatures = federation.sign(plan, total)
    forged = [replace(signatures[2], signature=bytes(64)), replace(signatures[3], node="node-9")]
    aborted(AbortCode.NO_QUORUM, lambda: total.certify([*signatures[:2], *forged]))
    aborted(AbortCode.NO_QUORUM, lambda: total.certify([signatures[0]] * 3))
    assert len(total.certify(signatures[1:])) == 3


def test_swapped_missing_or_edited_packets(federation: Any) -> None:
    plan = federation.plan()
    total = federation.collect(plan)
    total.certify(federation.sign(plan, total))
    good = total.unmask_request("node-0")
    first, second, *rest = good.packets
    swapped = (replace(first, sealed=second.sealed), replace(second, sealed=first.sealed), *rest)
    edited = (replace(first, sealed=first.sealed[:-1] + b"\0"), second, *rest)
    for packets in (swapped, edited, (second, *rest)):
        request = replace(good, packets=packets)
        refused(
            RefusalCode.BAD_PACKET,
            lambda: federation.nodes["node-0"].unmask(plan, request),  # noqa: B023
        )
    assert len(federation.nodes["node-0"].unmask(plan, good).shares) == 4


def copied_packet(federation: Any, total: StreamingSum, receiver: str, place: int) -> Any:
    """node-1 uploads again with another packet in place of its own for `receiver`."""
    upload = total._uploads["node-1"]
    sealed = total._uploads["node-0"].packets[place].sealed
    packets = tuple(
        SealedPacket(packet.node, sealed) if packet.node == receiver else packet
        for packet in upload.packets
    )
    tree = total._trees["node-1"] = packet_tree({p.node: p.sealed for p in packets})
    return replace(resign(federation, upload, packets_root=tree.root().hex()), packets=packets)


@pytest.mark.parametrize("place", [1, 2])  # of node-0's packets: redirected, copied
def test_a_copied_packet_does_not_open_for_another_sender(federation: Any, place: int) -> None:
    plan = federation.plan()
    total = federation.collect(plan)
    total._uploads["node-1"] = copied_packet(federation, total, "node-2", place)
    total.certify(federation.sign(plan, total))
    reply = federation.nodes["node-2"].unmask(plan, total.unmask_request("node-2"))
    assert [entry.survivor for entry in reply.shares] == ["node-0", "node-2", "node-3"]


def test_packet_keys_tell_direction_and_upload(federation: Any) -> None:
    one, two = (federation.nodes[name].pairwise for name in ("node-1", "node-2"))
    sent = packet_key(one, "node-1", "node-2", b"x" * 32)
    assert packet_key(two, "node-1", "node-2", b"x" * 32) == sent
    assert packet_key(two, "node-2", "node-1", b"x" * 32) != sent
    assert packet_key(two, "node-1", "node-2", b"y" * 32) != sent


def test_a_member_that_signed_another_set_is_named(federation: Any) -> None:
    plan = federation.plan()
    total = federation.collect(plan)
    signatures = federation.sign(plan, total)
    fewer = headers_of(total, ["node-0", "node-1", "node-2"])
    elsewhere = forge(federation, plan, fewer, ["node-2"])
    nodes = aborted(AbortCode.EQUIVOCATION, lambda: total.certify([*signatures[:2], *elsewhere]))
    assert nodes == ("node-2",)


def test_a_revealed_seed_tells_nothing_of_another_round(federation: Any) -> None:
    one, two = federation.nodes["node-1"], federation.nodes["node-2"]
    first, second = federation.plan(1).digest(), federation.plan(2).digest()
    assert one.pairwise.round_seed("node-2", first) == two.pairwise.round_seed("node-1", first)
    assert one.pairwise.round_seed("node-2", first) != one.pairwise.round_seed("node-2", second)
