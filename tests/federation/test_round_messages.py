"""The messages around a round: one exact encoding each, and fields within their ranges."""

import gc
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.flower import from_records, reply_from, to_records
from protos.messages import Refusal, Signed, WireError
from protos.round_messages import (
    Done,
    EpochRequest,
    HeadCountersigned,
    HeadHeld,
    HeadOffer,
    HeadQuery,
    OwnHead,
    OwnHeadShown,
    RunClose,
    UploadRequest,
)
from protos.wire import Parcel
from tests.wire import check_damaged, check_encoding, check_garbage

SIGNED = Signed(b"{}", b"s" * 64)
EXAMPLES = [
    EpochRequest("clinics", 3),
    UploadRequest(SIGNED, b"{}"),
    HeadQuery("coordinator"),
    HeadHeld(None),
    HeadHeld(SIGNED),
    HeadOffer(SIGNED, (b"p" * 32, b"q" * 32)),
    HeadCountersigned(SIGNED, Signed(b"[]", b"t" * 64)),
    OwnHeadShown(None),
    OwnHeadShown(SIGNED),
    OwnHead(SIGNED),
    RunClose("clinics", "r1"),
    Done(),
]
each = pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)


@each
def test_encode_decode_encode(message: Any) -> None:
    check_encoding(message)


def test_the_bytes_of_an_epoch_request() -> None:
    expected = (
        b"\x0a\x07clinics"  # field 1, federation
        b"\x10\xac\x02"  # field 2, epoch 300
    )
    assert EpochRequest("clinics", 300).to_bytes() == expected
    assert EpochRequest.from_bytes(expected).epoch == 300


def test_the_bytes_of_a_head_offer() -> None:
    expected = (
        b"\x0a\x46"  # field 1, head: 70 bytes
        b"\x0a\x02{}"  # its field 1, payload
        b"\x12\x40" + b"s" * 64 +  # its field 2, signature
        b"\x12\x20" + b"p" * 32  # field 2, first hash of the proof
    )  # fmt: skip
    offer = HeadOffer(SIGNED, (b"p" * 32,))
    assert offer.to_bytes() == expected
    assert HeadOffer.from_bytes(expected) == offer


@each
def test_unknown_fields_and_lost_bytes(message: Any) -> None:
    check_damaged(message)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.binary(max_size=120), place=st.integers(0, len(EXAMPLES) - 1))
def test_garbage_is_a_wire_error(data: bytes, place: int) -> None:
    check_garbage(type(EXAMPLES[place]), data)


@pytest.mark.parametrize(
    "build",
    [
        lambda: EpochRequest("", 1),
        lambda: EpochRequest("f" * 201, 1),
        lambda: EpochRequest("f", 0),
        lambda: EpochRequest("f", 2**53),
        lambda: UploadRequest(SIGNED, b""),
        lambda: UploadRequest(SIGNED, bytes(4097)),
        lambda: UploadRequest(Signed(b"{}", b"s" * 63), b"{}"),
        lambda: UploadRequest(Signed(b"", b"s" * 64), b"{}"),
        lambda: HeadQuery("Coordinator"),
        lambda: HeadHeld(Signed(b"", b"s" * 64)),
        lambda: HeadOffer(SIGNED, (b"p" * 32,) * 65),
        lambda: HeadOffer(SIGNED, (b"p" * 31,)),
        lambda: HeadCountersigned(Signed(b"x" * ((1 << 20) + 1), b"s" * 64), SIGNED),
        lambda: HeadCountersigned(SIGNED, Signed(b"", b"s" * 64)),
        lambda: OwnHeadShown(Signed(b"", b"s" * 64)),
        lambda: OwnHead(Signed(b"{}", b"s" * 63)),
        lambda: RunClose("", "r1"),
        lambda: RunClose("f", "r" * 201),
        lambda: HeadHeld.from_bytes(b"\x08\x01"),
    ],
)
def test_fields_out_of_their_range(build: Any) -> None:
    with pytest.raises(WireError, match="Expected"):
        build()


def test_messages_travel_as_flower_records() -> None:
    parcel = Parcel(HeadHeld(SIGNED), b"payload")
    assert from_records(to_records(parcel), HeadHeld) == parcel
    refusal = Parcel(Refusal("no-noise", "unit", "No"))
    assert reply_from(to_records(refusal), HeadHeld) == refusal
    with pytest.raises(WireError, match="Expected one of"):
        from_records(to_records(parcel), HeadQuery)


def test_a_payload_that_was_read_is_let_go_at_once() -> None:
    """Not when Python next looks for cycles: rounds would hold the vectors of those before."""
    gc.disable()
    try:
        records = to_records(Parcel(HeadHeld(SIGNED), b"payload"))
        from_records(records, HeadHeld)
        held = weakref.ref(records)
        del records
        assert held() is None
    finally:
        gc.enable()
