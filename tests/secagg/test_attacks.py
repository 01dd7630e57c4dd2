"""What a malicious coordinator, or up to c colluding members, may try in a round."""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from privacy.identity import Signed
from privacy.secagg.coordinator import StreamingSum
from privacy.secagg.header import (
    Header,
    RefusalCode,
    SecAggRefused,
    digest_words,
    read_survivors,
)
from privacy.secagg.masks import Mask
from privacy.secagg.node import SecAggNode
from privacy.secagg.packets import packet_key, packet_tree
from privacy.secagg.recovery import AbortCode, SecAggAbort
from protos.messages import SealedPacket, SurvivorSignature


def refused(code: RefusalCode, action: Callable[[], object]) -> None:
    with pytest.raises(SecAggRefused) as caught:
        action()
    assert caught.value.code is code


def aborted(code: AbortCode, action: Callable[[], object]) -> tuple[str, ...]:
    with pytest.raises(SecAggAbort) as caught:
        action()
    assert caught.value.code is code
    return caught.value.nodes


def headers_of(total: StreamingSum, names: Iterable[str] | None = None) -> tuple[Signed, ...]:
    chosen = total.uploaded if names is None else sorted(names)
    return tuple(total._uploads[name].header for name in chosen)


def forge(federation: Any, plan: Any, headers: Any, signers: Iterable[str]) -> Any:
    """Signatures of members that sign whatever they are shown."""
    survivors = read_survivors(plan, federation.roster, headers)
    return tuple(
        SurvivorSignature(
            name,
            survivors.plan_digest,
            survivors.digest,
            federation.identities[name].sign("survivors", survivors.signed_payload()).signature,
        )
        for name in sorted(signers)
    )


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


def resign(federation: Any, upload: Any, **changes: Any) -> Any:
    """An upload whose member itself signs another header."""
    header = Header.model_validate_json(upload.header.payload).model_copy(update=changes)
    signed = federation.identities[upload.node].sign("header", header.payload())
    words_digest = bytes.fromhex(header.words)
    return replace(upload, header=signed, words_digest=words_digest)


def test_a_header_without_a_packet_for_everyone(federation: Any) -> None:
    plan = federation.plan()
    upload, words = federation.upload("node-1", plan)
    packets = upload.packets[1:]
    root = packet_tree({packet.node: packet.sealed for packet in packets}).root().hex()
    short = replace(resign(federation, upload, packets_root=root), packets=packets)
    total = StreamingSum(plan, federation.roster)
    aborted(AbortCode.BAD_UPLOAD, lambda: total.add(short, words))
    assert total.uploaded == ()


def test_a_member_that_signs_a_shorter_vector(federation: Any) -> None:
    plan = federation.plan()
    upload, words = federation.upload("node-1", plan)
    total = StreamingSum(plan, federation.roster)
    for short in (words[:1], words[:-1]):  # numpy would add one word to every word
        digest = digest_words(short).hex()
        signed = resign(federation, upload, words=digest)
        aborted(AbortCode.BAD_UPLOAD, lambda: total.add(signed, short))  # noqa: B023
    assert total.uploaded == ()


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


def test_a_vector_of_another_length_or_ring(federation: Any) -> None:
    plan = federation.plan()
    node = federation.nodes["node-0"]
    for words in (np.zeros(100, "<u2"), np.zeros(101, "<u4"), np.zeros((101, 1), "<u2")):
        refused(RefusalCode.BAD_WORDS, lambda: node.seal_upload(words, plan))  # noqa: B023
    total = StreamingSum(plan, federation.roster)
    upload, words = federation.upload("node-1", plan)
    assert aborted(AbortCode.BAD_UPLOAD, lambda: total.add(upload, words[:-1])) == ("node-1",)


def test_a_second_upload_with_other_bytes(federation: Any) -> None:
    plan = federation.plan()
    total = federation.collect(plan)
    node = federation.nodes["node-1"]
    node.store.plans.clear()  # as after a rollback of the disk
    upload, words = federation.upload("node-1", plan)
    before = total._words.copy()
    assert aborted(AbortCode.BAD_UPLOAD, lambda: total.add(upload, words)) == ("node-1",)
    np.testing.assert_array_equal(total._words, before)


def test_uploads_that_do_not_match_their_header(federation: Any) -> None:
    plan = federation.plan()
    upload, words = federation.upload("node-1", plan)
    other, _ = federation.upload("node-2", plan)
    edges = upload.edge_commitments
    wrong_edge = (replace(edges[0], commitment=bytes(32)), *edges[1:])
    cases = [
        (upload, words + np.uint16(1)),
        (replace(upload, own_commitment=bytes(32)), words),
        (replace(upload, edge_commitments=wrong_edge), words),
        (replace(upload, edge_commitments=edges[1:]), words),
        (replace(upload, packets=other.packets), words),
        (replace(upload, words_digest=bytes(32)), words),
        (replace(upload, node="node-3"), words),
        (replace(upload, header=other.header), words),
    ]
    total = StreamingSum(plan, federation.roster)
    for wrong, vector in cases:
        aborted(AbortCode.BAD_UPLOAD, lambda: total.add(wrong, vector))  # noqa: B023
    assert total.add(upload, words)


def test_an_upload_after_the_set_is_fixed(federation: Any) -> None:
    plan = federation.plan()
    total = federation.collect(plan, gone=["node-3"])
    total.close()
    late = federation.upload("node-3", plan)
    assert aborted(AbortCode.CLOSED, lambda: total.add(*late)) == ("node-3",)


def test_a_wrong_pairwise_mask_names_the_pair(federation: Any) -> None:
    plan = federation.plan()
    federation.nodes["node-1"].pairwise._cache["mask", "node-3"] = os.urandom(32)
    nodes = aborted(AbortCode.BAD_EDGE, lambda: federation.collect(plan))
    assert nodes == ("node-1", "node-3")


@pytest.mark.parametrize("ring_bits", [16, 32])
def test_masks_that_do_not_cancel_are_noticed(
    federation: Any, monkeypatch: pytest.MonkeyPatch, ring_bits: int
) -> None:
    """node-1 commits to the right seeds and masks with others: no commitment can tell."""
    plan = federation.plan(step=federation.step(ring_bits=ring_bits))
    node, masks = federation.nodes["node-1"], SecAggNode._masks

    def others(self: Any, *arguments: Any) -> list[Mask]:
        return masks(self, *arguments)[:-1] if self is node else masks(self, *arguments)

    monkeypatch.setattr(SecAggNode, "_masks", others)
    total = federation.collect(plan)
    total.certify(federation.sign(plan, total))
    replies = [federation.nodes[x].unmask(plan, total.unmask_request(x)) for x in federation.names]
    before = total._words.copy()
    aborted(AbortCode.BAD_COUNT, lambda: total.open_sum(replies))
    assert (total._words == before).all()


def test_a_count_other_than_one(federation: Any) -> None:
    """A member that is counted twice, or not at all, spoils the sum visibly."""
    plan = federation.plan()
    total = StreamingSum(plan, federation.roster)
    for name in federation.names:
        upload, words = federation.upload(name, plan)
        if name == "node-1":
            count = np.frombuffer(
                bytes.fromhex(Header.model_validate_json(upload.header.payload).count), "<u2"
            )
            upload = resign(federation, upload, count=(count + np.uint16(1)).tobytes().hex())
        total.add(upload, words)
    total.certify(federation.sign(plan, total))
    replies = [federation.nodes[x].unmask(plan, total.unmask_request(x)) for x in federation.names]
    aborted(AbortCode.BAD_COUNT, lambda: total.open_sum(replies))


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
