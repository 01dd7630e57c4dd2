"""What every wire message has in common: one exact encoding, and checks on its fields."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NoReturn, Self

from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from protos.arion.v1.secagg_pb2 import SignedBytes
from protos.signed import Signed

LARGEST_MESSAGE_BYTES = 16 << 20
"""The largest is a committee member's packets of 1,000 members over a dense graph: 8 MiB."""
LARGEST_COHORT = 1_000
LARGEST_PAYLOAD_BYTES = 1 << 20
DIGEST_BYTES = 32
SIGNATURE_BYTES = 64
_NAME = re.compile(r"[a-z0-9-]{1,63}")


class WireError(ValueError):
    """Bytes or fields that are not a message of this protocol."""


@dataclass(frozen=True)
class WireMessage(ABC):
    """A message with one exact encoding."""

    wire: ClassVar[type[Message]]

    def to_bytes(self) -> bytes:
        """Return the encoding; equal messages give equal bytes."""
        encoded: bytes = self._to_wire().SerializeToString(deterministic=True)
        return encoded

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a message.

        Raises:
            WireError: garbage, unknown fields, another encoding, or a field out of its range.

        """
        if len(data) > LARGEST_MESSAGE_BYTES:
            refuse(cls.__name__, f"at most {LARGEST_MESSAGE_BYTES} bytes", len(data))
        parsed = cls.wire()
        try:
            parsed.ParseFromString(data)
        except DecodeError as error:
            raise WireError(
                f"Expected a {cls.__name__}, got {len(data)} bytes that are not protobuf. "
                "Check that both sides run the same version."
            ) from error
        message = cls._from_wire(parsed)
        if message.to_bytes() != data:
            _refuse_newer(cls.__name__, parsed)
            refuse(cls.__name__, "its one exact encoding", "another one")
        return message

    @abstractmethod
    def _to_wire(self) -> Message: ...

    @classmethod
    @abstractmethod
    def _from_wire(cls, parsed: Any) -> Self: ...


@dataclass(frozen=True)
class Parcel:
    """A message, and what travels beside it: parameters or masked words, as flat bytes."""

    message: WireMessage
    payload: bytes = b""


def check_name(name: str) -> None:
    """Require a name of a node, or of a code."""
    if not _NAME.fullmatch(name):
        refuse("name", "[a-z0-9-]{1,63}", repr(name[:80]))


def check_names(names: Sequence[str]) -> None:
    """Require names in order, each once, so that equal sets have equal encodings."""
    if len(names) > LARGEST_COHORT:
        refuse("list", f"at most {LARGEST_COHORT} entries", len(names))
    for name in names:
        check_name(name)
    if any(first >= second for first, second in pairwise(names)):
        refuse("list", "names in order, each once", names)


def check_length(field: str, value: bytes, expected: int) -> None:
    """Require a field of a fixed length."""
    if len(value) != expected:
        refuse(field, f"{expected} bytes", len(value))


def check_signed(field: str, signed: Signed) -> None:
    """Require a payload and a signature of possible lengths."""
    check_length(f"{field} signature", signed.signature, SIGNATURE_BYTES)
    if not 0 < len(signed.payload) <= LARGEST_PAYLOAD_BYTES:
        refuse(field, f"1 to {LARGEST_PAYLOAD_BYTES} bytes", len(signed.payload))


def check_signed_list(field: str, entries: Sequence[Signed]) -> None:
    """Require between one entry and one per member of the largest cohort."""
    if not 0 < len(entries) <= LARGEST_COHORT:
        refuse(field, f"1 to {LARGEST_COHORT} entries", len(entries))
    for signed in entries:
        check_signed(field, signed)


def signed_to_wire(signed: Signed) -> SignedBytes:
    """Return the wire's form of signed bytes."""
    return SignedBytes(payload=signed.payload, signature=signed.signature)


def signed_from_wire(parsed: SignedBytes) -> Signed:
    """Read the wire's form of signed bytes."""
    return Signed(parsed.payload, parsed.signature)


def _refuse_newer(name: str, parsed: Message) -> None:
    """Refuse fields that this version does not know: what they ask for, it could not heed."""
    size = parsed.ByteSize()
    parsed.DiscardUnknownFields()
    if parsed.ByteSize() < size:
        raise WireError(
            f"Expected a {name} of the fields that this version knows, got others too: its sender "
            "runs a newer version. Upgrade this side."
        )


def refuse(field: str, expected: str, got: object) -> NoReturn:
    """Raise WireError: what was expected where, and what came."""
    raise WireError(
        f"Expected {expected} in {field}, got {got}. Check that both sides run the same version."
    )
