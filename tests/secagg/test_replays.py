"""What was sent before, sent again: by a member whose disk was restored, and by one that lies."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coordinator.plausibility import check_norm
from privacy.dp.lattice import decode, encode
from privacy.dp.noise import SecureGaussian
from privacy.secagg.aborts import AbortCode
from privacy.secagg.coordinator import StreamingSum
from privacy.secagg.header import Header, RefusalCode
from privacy.secagg.masks import masked_one
from privacy.secagg.memory import plan_key
from privacy.secagg.packets import open_packet
from protos.wire import WireError
from tests.secagg.test_attacks import aborted, forge, headers_of, refused, resign


def replies(federation: Any, plan: Any, total: StreamingSum) -> list[Any]:
    total.certify(federation.sign(plan, total))
    return [federation.nodes[x].unmask(plan, total.unmask_request(x)) for x in total.committee]


def header_of(upload: Any) -> Header:
    return Header.model_validate_json(upload.header.payload)


def test_two_uploads_of_a_restored_member_open_one_of_them(federation: Any) -> None:
    """Both have the same pairwise masks; only the certified one's own mask can be taken off."""
    plan = federation.plan()
    total = federation.collect(plan)
    first = total._uploads["node-1"]
    federation.nodes["node-1"].store.plans.clear()  # its disk is put back to before the round
    second, _ = federation.upload("node-1", plan)
    assert second.own_commitment != first.own_commitment
    assert second.edge_commitments == first.edge_commitments
    opened = total.open_sum(replies(federation, plan, total))
    np.testing.assert_array_equal(opened.words, federation.expected(plan, federation.names))
    node, place = federation.nodes["node-0"], total.group.committee.index("node-0")
    sealed = second.packets[place].sealed
    assert open_packet(node.pairwise, header_of(second), sealed, total.group) is not None
    assert open_packet(node.pairwise, header_of(first), sealed, total.group) is None
    total._uploads["node-1"] = second
    headers = headers_of(total)
    refused(RefusalCode.SECOND_SET, lambda: node.sign_survivors(plan, headers))
    certificate = forge(federation, plan, headers, ["node-1"])  # it forgot what it signed
    request = replace(total.unmask_request("node-0"), headers=headers, certificate=certificate)
    refused(RefusalCode.NOT_SIGNED, lambda: node.unmask(plan, request))


def test_a_second_uploads_packet_under_the_first_ones_header(federation: Any) -> None:
    plan = federation.plan()
    total = federation.collect(plan)
    total.certify(federation.sign(plan, total))
    good = total.unmask_request("node-0")
    federation.nodes["node-1"].store.plans.clear()
    second, _ = federation.upload("node-1", plan)
    swapped = replace(good.packets[1], sealed=second.packets[0].sealed)
    request = replace(good, packets=(good.packets[0], swapped, *good.packets[2:]))
    refused(RefusalCode.BAD_PACKET, lambda: federation.nodes["node-0"].unmask(plan, request))


def test_an_upload_of_another_round(federation: Any) -> None:
    old = federation.upload("node-1", federation.plan(1))
    plan = federation.plan(2)
    total = StreamingSum(plan, federation.roster)
    assert aborted(AbortCode.BAD_UPLOAD, lambda: total.add(*old)) == ("node-1",)
    renamed = resign(federation, old[0], plan=plan.digest().hex())
    headers = [federation.upload(name, plan)[0].header for name in ("node-0", "node-2", "node-3")]
    assert total.add(renamed, old[1])  # the member itself put its old words under the new plan
    listed = [headers[0], renamed.header, *headers[1:]]
    assert federation.nodes["node-0"].sign_survivors(plan, listed)


def mixed(federation: Any, words_only: bool) -> tuple[Any, StreamingSum]:
    """Round 2 with node-1's words of round 1, and with its count of round 1 unless words_only.

    All else of that upload is what an honest member would make around such words.
    """
    plan, node = noisy(federation, 2), federation.nodes["node-1"]
    old, words = federation.upload("node-1", noisy(federation, 1))
    seeds = node._draw_seeds(plan)
    count = bytes.fromhex(header_of(old).count)
    if words_only:
        count = masked_one(node._masks(seeds, plan.digest()), plan.step.ring_bits)
    total = StreamingSum(plan, federation.roster)
    for name in federation.names:
        if name == "node-1":
            node.store.claim_plan(plan_key(plan), plan.digest())
            total.add(node._seal(words, count, plan, seeds), words)
        else:
            total.add(*federation.upload(name, plan))
    return plan, total


def noisy(federation: Any, number: int) -> Any:
    length = 5_000
    trainable = (("lora.a", length - 1), ("lora.b", 1))
    return federation.plan(number, vector_length=length, trainable=trainable)


@pytest.fixture
def shares(federation: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Members send noise shares of the step and nothing else: an honest, empty round."""

    def vector(self: Any, name: str, plan: Any) -> Any:
        return encode(np.zeros(plan.vector_length, "<f4"), plan.step, SecureGaussian())

    monkeypatch.setattr(type(federation), "vector", vector)
    return federation


def test_words_and_count_of_another_round(shares: Any) -> None:
    plan, total = mixed(shares, words_only=False)
    certified = replies(shares, plan, total)
    aborted(AbortCode.BAD_COUNT, lambda: total.open_sum(certified))


@pytest.mark.parametrize("foul", [True, False])
def test_words_of_another_round_under_an_honest_count(shares: Any, foul: bool) -> None:
    """Its old masks do not cancel, so the sum is noise over the whole ring: its norm tells."""
    plan, total = mixed(shares, words_only=True) if foul else (noisy(shares, 2), None)
    total = total or shares.collect(plan)
    opened = total.open_sum(replies(shares, plan, total))
    sum_D = decode(opened.words, plan.step)

    def check() -> None:
        check_norm(sum_D, plan, len(opened.survivors), 4.0)

    if foul:
        aborted(AbortCode.BAD_NORM, check)
    else:
        check()


def test_packets_that_are_missing_twice_or_too_many(federation: Any) -> None:
    plan = federation.plan()
    total = federation.collect(plan, gone=["node-3"])
    total.certify(federation.sign(plan, total))
    node, good = federation.nodes["node-0"], total.unmask_request("node-0")
    first, second, third = good.packets
    with pytest.raises(WireError, match="each once"):
        replace(good, packets=(first, first, third))
    for packets in ((first, second), (), (*good.packets, replace(third, node="z"))):
        request = replace(good, packets=packets)
        refused(RefusalCode.BAD_PACKET, lambda: node.unmask(plan, request))  # noqa: B023
    assert len(node.unmask(plan, good).shares) == 3


def test_a_packet_reflected_to_its_sender(federation: Any) -> None:
    """What node-0 sealed for node-1, shown to node-0 as sealed for it by node-1."""
    plan = federation.plan()
    total = federation.collect(plan)
    total.certify(federation.sign(plan, total))
    good = total.unmask_request("node-0")
    sent = total._uploads["node-0"].packets[1].sealed
    reflected = replace(good.packets[1], sealed=sent)
    request = replace(good, packets=(good.packets[0], reflected, *good.packets[2:]))
    refused(RefusalCode.BAD_PACKET, lambda: federation.nodes["node-0"].unmask(plan, request))
    for header in (header_of(total._uploads["node-0"]), header_of(total._uploads["node-1"])):
        pairwise = federation.nodes["node-0"].pairwise
        assert open_packet(pairwise, header, sent, total.group) is None


@pytest.mark.parametrize("members", [3, 9])
def test_one_fewer_than_n_min(make_federation: Callable[..., Any], members: int) -> None:
    """A cohort of one, and of n_min - 1, at the coordinator and at every member of it."""
    federation = make_federation(members, members, 1)
    plan = federation.plan()
    sent = {name: federation.upload(name, plan) for name in federation.names}
    for count in (1, members - 1):
        total, chosen = StreamingSum(plan, federation.roster), federation.names[:count]
        for name in chosen:
            total.add(*sent[name])
        aborted(AbortCode.BELOW_N_MIN, total.close)
        for name in chosen:
            refused(
                RefusalCode.BELOW_N_MIN,
                lambda: federation.nodes[name].sign_survivors(plan, headers_of(total)),  # noqa: B023
            )
