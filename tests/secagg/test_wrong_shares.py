"""Committee members that send wrong shares, or shares of another set: corrected, named, refused."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from privacy.secagg.aborts import AbortCode
from privacy.secagg.header import survivors_payload
from privacy.secagg.recovery import WrongShare
from tests.secagg.test_attacks import aborted


def garbled(reply: Any) -> Any:
    shares = tuple(replace(entry, own_share=os.urandom(32)) for entry in reply.shares)
    return replace(reply, shares=shares)


@pytest.mark.parametrize(("members", "liars"), [(4, 1), (8, 2), (20, 2)])
def test_wrong_shares_are_corrected_and_their_senders_named(
    make_federation: Callable[..., Any], members: int, liars: int
) -> None:
    federation = make_federation(members, 3, 1)
    plan = federation.plan()
    total = federation.collect(plan)
    total.certify(federation.sign(plan, total))
    replies = [federation.nodes[x].unmask(plan, total.unmask_request(x)) for x in federation.names]
    replies[:liars] = [garbled(reply) for reply in replies[:liars]]
    opened = total.open_sum(replies)
    np.testing.assert_array_equal(opened.words, federation.expected(plan, federation.names))
    assert opened.wrong_shares == {
        WrongShare(sender, dealer)
        for sender in federation.names[:liars]
        for dealer in federation.names
    }


def test_a_wrong_share_of_a_pairs_seed_is_corrected_and_its_sender_named(
    make_federation: Callable[..., Any],
) -> None:
    federation = make_federation(6, 3, 1)
    plan = federation.plan()
    total = federation.collect(plan, gone=["node-5"])
    total.certify(federation.sign(plan, total))
    first, *rest = [
        federation.nodes[x].unmask(plan, total.unmask_request(x)) for x in total.uploaded
    ]
    wrong = tuple(
        replace(entry, edge_shares=(replace(entry.edge_shares[0], share=os.urandom(32)),))
        for entry in first.shares
    )
    opened = total.open_sum([replace(first, shares=wrong), *rest])
    np.testing.assert_array_equal(opened.words, federation.expected(plan, total.uploaded))
    assert opened.wrong_shares == {WrongShare("node-0", dealer) for dealer in total.uploaded}


def test_too_many_wrong_shares_abort_and_more_replies_help(federation: Any) -> None:
    plan = federation.plan()
    total = federation.collect(plan, gone=["node-3"])
    total.certify(federation.sign(plan, total))
    replies = [federation.nodes[x].unmask(plan, total.unmask_request(x)) for x in total.uploaded]
    nodes = aborted(
        AbortCode.BAD_SHARE, lambda: total.open_sum([garbled(replies[0]), *replies[1:]])
    )
    assert nodes == ("node-0",)
    opened = total.open_sum(replies)
    np.testing.assert_array_equal(opened.words, federation.expected(plan, total.uploaded))


def test_a_reply_about_another_set(federation: Any) -> None:
    plan = federation.plan()
    total = federation.collect(plan, gone=["node-3"])
    total.certify(federation.sign(plan, total))
    replies = [federation.nodes[x].unmask(plan, total.unmask_request(x)) for x in total.uploaded]
    wrong = [
        replace(replies[0], set_digest=bytes(32)),
        replace(replies[0], node="node-9"),
        replace(replies[0], shares=(replace(replies[0].shares[0], edge_shares=()),)),
        replace(replies[0], shares=(replace(replies[0].shares[0], survivor="node-3"),)),
    ]
    for reply in wrong:
        aborted(AbortCode.BAD_REPLY, lambda: total.open_sum([reply, *replies[1:]]))  # noqa: B023


def test_who_answers_about_another_set_stops_nobody_else(federation: Any) -> None:
    """Quorum 3 of 4: one such answer is left out, and its sender named."""
    plan = federation.plan()
    total = federation.collect(plan)
    signatures = federation.sign(plan, total)
    other = replace(signatures[3], set_digest=bytes(32))
    payload = survivors_payload(plan.digest(), bytes(32))
    signed = federation.identities["node-3"].sign("survivors", payload)
    other = replace(other, signature=signed.signature)
    certificate = total.certify([*signatures[:3], other])
    assert [each.node for each in certificate] == ["node-0", "node-1", "node-2"]
    assert total.faults["node-3"].code is AbortCode.EQUIVOCATION
    replies = [federation.nodes[x].unmask(plan, total.unmask_request(x)) for x in federation.names]
    opened = total.open_sum([replace(replies[0], set_digest=bytes(32)), *replies[1:]])
    np.testing.assert_array_equal(opened.words, federation.expected(plan, federation.names))
    assert total.faults["node-0"].code is AbortCode.BAD_REPLY
