"""The sum is exact, or the round aborts: whoever leaves, and whenever."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from privacy.secagg.aborts import AbortCode, SecAggAbort
from privacy.secagg.coordinator import OpenedSum, StreamingSum
from protos.messages import UnmaskReply, UnmaskRequest, Upload


def assert_exact(federation: Any, plan: Any, opened: OpenedSum) -> None:
    np.testing.assert_array_equal(opened.words, federation.expected(plan, opened.survivors))


def test_all_members_stay(federation: Any) -> None:
    plan = federation.plan()
    opened = federation.run(plan)
    assert opened.survivors == federation.names
    assert opened.wrong_shares == frozenset()
    assert_exact(federation, plan, opened)


@pytest.mark.parametrize(
    ("moment", "survivors"),
    [("before_upload", 3), ("before_signing", 4), ("before_unmasking", 4)],
)
def test_one_of_four_leaves(federation: Any, moment: str, survivors: int) -> None:
    plan = federation.plan()
    opened = federation.run(plan, **{moment: ["node-2"]})
    assert len(opened.survivors) == survivors
    assert_exact(federation, plan, opened)


def test_a_member_without_noise_in_the_wide_ring(federation: Any) -> None:
    plan = federation.plan(step=federation.step(noise_multiplier=0.0, ring_bits=32))
    opened = federation.run(plan, before_upload=["node-0"])
    assert opened.words.dtype == np.dtype("<u4")
    assert_exact(federation, plan, opened)


@pytest.mark.parametrize("ring_bits", [8, 12])
def test_a_narrow_ring(federation: Any, ring_bits: int) -> None:
    plan = federation.plan(step=federation.step(ring_bits=ring_bits))
    opened = federation.run(plan, before_upload=["node-0"])
    assert opened.words.max() < 2**ring_bits
    assert_exact(federation, plan, opened)


def test_consecutive_rounds_and_attempts(federation: Any) -> None:
    for place in ((1, 1), (1, 2), (2, 1)):
        plan = federation.plan(place[0], attempt=place[1])
        assert_exact(federation, plan, federation.run(plan, before_upload=["node-3"]))


def test_three_members_all_needed(make_federation: Callable[..., Any]) -> None:
    federation = make_federation(3)
    plan = federation.plan()
    assert_exact(federation, plan, federation.run(plan))
    with pytest.raises(SecAggAbort) as caught:
        federation.run(federation.plan(2), before_signing=["node-1"])
    assert caught.value.code is AbortCode.NO_QUORUM


def test_uploads_survive_the_wire(federation: Any) -> None:
    plan = federation.plan()
    total = StreamingSum(plan, federation.roster)
    for name in federation.names:
        upload, words = federation.upload(name, plan)
        total.add(Upload.from_bytes(upload.to_bytes()), np.frombuffer(words.tobytes(), "<u2"))
    total.certify(federation.sign(plan, total))
    replies = [
        federation.nodes[name].unmask(
            plan, UnmaskRequest.from_bytes(total.unmask_request(name).to_bytes())
        )
        for name in federation.names
    ]
    opened = total.open_sum([UnmaskReply.from_bytes(reply.to_bytes()) for reply in replies])
    assert_exact(federation, plan, opened)


def test_a_resend_counts_once(federation: Any) -> None:
    plan = federation.plan()
    total = StreamingSum(plan, federation.roster)
    uploads = {name: federation.upload(name, plan) for name in federation.names}
    assert [total.add(*uploads[name]) for name in federation.names] == [True] * 4
    assert total.add(*uploads["node-1"]) is False
    total.certify(federation.sign(plan, total))
    replies = [federation.nodes[x].unmask(plan, total.unmask_request(x)) for x in federation.names]
    assert_exact(federation, plan, total.open_sum(replies))


def test_masked_words_do_not_tell_the_vector(federation: Any) -> None:
    plan = federation.plan(vector_length=200_000, trainable=(("lora.a", 200_000),))
    words = np.zeros(200_000, "<u2")
    federation.nodes["node-0"].seal_upload(words, plan)
    counts = np.bincount(words >> 8, minlength=256)
    chi_squared = float((((counts - 200_000 / 256) ** 2) / (200_000 / 256)).sum())
    assert 150 < chi_squared < 380  # 255 degrees of freedom, 5 standard deviations


def test_opening_again_changes_nothing(federation: Any) -> None:
    plan = federation.plan()
    total = federation.collect(plan)
    total.certify(federation.sign(plan, total))
    replies = [federation.nodes[x].unmask(plan, total.unmask_request(x)) for x in federation.names]
    with pytest.raises(SecAggAbort, match="replies"):
        total.open_sum(replies[:2])
    first = total.open_sum(replies).words.copy()
    np.testing.assert_array_equal(total.open_sum(replies).words, first)


def test_memory_is_one_vector_whatever_the_number_of_members(federation: Any) -> None:
    length = 1_000_000
    plan = federation.plan(vector_length=length, trainable=(("lora.a", length),))
    total = StreamingSum(plan, federation.roster)
    vectors = {name: federation.vector(name, plan) for name in federation.names}
    tracemalloc.start()
    for name, words in vectors.items():
        total.add(federation.nodes[name].seal_upload(words, plan), words)
    total.certify(federation.sign(plan, total))
    replies = [federation.nodes[x].unmask(plan, total.unmask_request(x)) for x in federation.names]
    opened = total.open_sum(replies)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < length * 2 / 2  # neither sealing, adding nor opening copies a vector
    assert_exact(federation, plan, opened)
