"""The wire: encode, decode, re-encode; and nothing but WireError for garbage."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.epoch_messages import (
    KeyBundleMessage,
    RevealMessage,
    RevealsMessage,
    RosterMessage,
)
from protos.messages import (
    EdgeCommitment,
    EdgeShare,
    ProvenPacket,
    Refusal,
    SealedPacket,
    Signed,
    SurvivorShares,
    SurvivorSignature,
    SurvivorsRequest,
    UnmaskReply,
    UnmaskRequest,
    Upload,
    WireError,
)
from tests.wire import check_damaged, check_encoding, check_garbage

ROOT = Path(__file__).resolve().parents[2]
SIGNED = Signed(b"{}", b"s" * 64)
DIGEST = b"d" * 32
PACKETS = (SealedPacket("a", b"x" * 48), SealedPacket("b", b"y" * 48))
PROVEN = (ProvenPacket("a", b"x" * 48, (DIGEST,)), ProvenPacket("b", b"y" * 48, ()))
SIGNATURE = SurvivorSignature("a", DIGEST, DIGEST, b"s" * 64)
EXAMPLES = [
    KeyBundleMessage(SIGNED),
    RevealMessage(SIGNED),
    RosterMessage((SIGNED, SIGNED)),
    RevealsMessage((SIGNED,)),
    Upload("a", SIGNED, DIGEST, DIGEST, (EdgeCommitment("b", DIGEST),), PACKETS),
    SurvivorsRequest(DIGEST, (SIGNED,)),
    SIGNATURE,
    UnmaskRequest(DIGEST, (SIGNED,), (SIGNATURE,), PROVEN),
    UnmaskReply("a", DIGEST, DIGEST, (SurvivorShares("b", DIGEST, (EdgeShare("c", DIGEST),)),)),
    Refusal("over-budget", "epsilon", "Expected less."),
]
each = pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)


@each
def test_encode_decode_encode(message: Any) -> None:
    check_encoding(message)


def test_the_bytes_of_a_refusal() -> None:
    expected = (
        b"\x0a\x08no-noise"  # field 1, code
        b"\x12\x04unit"  # field 2, clause
        b"\x1a\x02No"  # field 3, detail
    )
    assert Refusal("no-noise", "unit", "No").to_bytes() == expected


@each
def test_unknown_fields_and_lost_bytes(message: Any) -> None:
    check_damaged(message)
    with pytest.raises(WireError, match="Expected"):
        type(message).from_bytes(b"")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.binary(max_size=200), place=st.integers(0, len(EXAMPLES) - 1))
def test_garbage_is_a_wire_error(data: bytes, place: int) -> None:
    check_garbage(type(EXAMPLES[place]), data)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    place=st.integers(0, len(EXAMPLES) - 1),
    at=st.integers(0, 400),
    byte=st.integers(0, 255),
    cut=st.booleans(),
)
def test_a_changed_byte_is_another_message_or_a_wire_error(
    place: int, at: int, byte: int, cut: bool
) -> None:
    good = EXAMPLES[place].to_bytes()
    at %= len(good)
    data = good[:at] + bytes([byte]) + good[at + 1 + cut :]
    try:
        message = type(EXAMPLES[place]).from_bytes(data)
    except WireError:
        return
    assert message.to_bytes() == data
    assert (message == EXAMPLES[place]) == (data == good)


@pytest.mark.parametrize("name", ["", "A", "a" * 64, "a\n", "a/b", "é"])
def test_names(name: str) -> None:
    with pytest.raises(WireError, match="name"):
        replace(SIGNATURE, node=name)


@pytest.mark.parametrize(
    "packets", [PACKETS[::-1], (PACKETS[0], PACKETS[0])], ids=["order", "twice"]
)
def test_lists_have_one_order(packets: tuple[SealedPacket, ...]) -> None:
    with pytest.raises(WireError, match="names in order"):
        UnmaskRequest(DIGEST, (SIGNED,), (SIGNATURE,), packets)


def test_lists_are_no_longer_than_a_cohort() -> None:
    assert len(SurvivorsRequest(DIGEST, (SIGNED,) * 1_000).headers) == 1_000
    with pytest.raises(WireError, match="1 to 1000"):
        SurvivorsRequest(DIGEST, (SIGNED,) * 1_001)
    packets = tuple(ProvenPacket(f"n{place:04}", b"x" * 48, ()) for place in range(1_001))
    with pytest.raises(WireError, match="at most 1000"):
        UnmaskRequest(DIGEST, (SIGNED,), (SIGNATURE,), packets)


@pytest.mark.parametrize(
    "build",
    [
        lambda: replace(SIGNATURE, signature=b"s" * 63),
        lambda: replace(SIGNATURE, plan_digest=b""),
        lambda: SealedPacket("a", b"x" * 16),
        lambda: SealedPacket("a", b"x" * 32_017),
        lambda: ProvenPacket("a", b"x" * 32_017, ()),
        lambda: ProvenPacket("a", b"x" * 48, (b"short",)),
        lambda: ProvenPacket("a", b"x" * 48, (DIGEST,) * 11),
        lambda: EdgeShare("a", b"x" * 33),
        lambda: KeyBundleMessage(Signed(b"", b"s" * 64)),
        lambda: KeyBundleMessage(Signed(b"x" * ((1 << 20) + 1), b"s" * 64)),
        lambda: SurvivorsRequest(DIGEST, ()),
        lambda: Refusal("Not a code", "", ""),
        lambda: Refusal("code", "", "x" * 1_001),
    ],
)
def test_fields_out_of_their_range(build: Any) -> None:
    with pytest.raises(WireError, match="Expected"):
        build()


def test_messages_have_a_largest_size() -> None:
    with pytest.raises(WireError, match="16777216 bytes"):
        Refusal.from_bytes(bytes((16 << 20) + 1))


def test_the_stubs_are_those_of_the_proto_file(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools regenerates the stubs")
    shell = shutil.which("sh")
    assert shell is not None
    subprocess.run(
        [shell, "protos/generate.sh", str(tmp_path)],
        cwd=ROOT,
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
        check=True,
    )
    stubs = sorted((ROOT / "protos/arion/v1").glob("*_pb2*.py*"))
    assert len(stubs) == 7
    for name in (stub.name for stub in stubs):
        path = Path("protos/arion/v1") / name
        assert (tmp_path / path).read_text() == (ROOT / path).read_text()
