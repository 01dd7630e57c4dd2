"""What a malicious member may upload: it is refused, or the sum that it spoilt is noticed."""

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from privacy.secagg.aborts import AbortCode
from privacy.secagg.coordinator import StreamingSum
from privacy.secagg.header import (
    Header,
    RefusalCode,
    digest_words,
)
from privacy.secagg.masks import Mask
from privacy.secagg.node import SecAggNode
from privacy.secagg.packets import packet_tree
from tests.secagg.hostile import aborted, refused, resign


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
