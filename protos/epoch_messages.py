"""Messages by which an epoch is entered: keys that commit to nonces, then the nonces.

Like those of `protos.messages`, each has one exact encoding and checks its fields once.
"""

from dataclasses import dataclass
from typing import Any, Self

from google.protobuf.message import Message  # type: ignore[import-untyped]

from protos.arion.v1 import secagg_pb2 as pb
from protos.signed import Signed
from protos.wire import (
    WireMessage,
    check_signed,
    check_signed_list,
    signed_from_wire,
    signed_to_wire,
)


@dataclass(frozen=True)
class _SignedMessage(WireMessage):
    """A message that is nothing but signed bytes."""

    signed: Signed

    def __post_init__(self) -> None:
        check_signed("signed", self.signed)

    def _to_wire(self) -> Message:
        return self.wire(signed=signed_to_wire(self.signed))

    @classmethod
    def _from_wire(cls, parsed: Any) -> Self:
        return cls(signed_from_wire(parsed.signed))


@dataclass(frozen=True)
class KeyBundleMessage(_SignedMessage):
    """Member to all: its public keys of an epoch (`privacy.secagg.keys.KeyBundle`)."""

    wire = pb.KeyBundle


@dataclass(frozen=True)
class RevealMessage(_SignedMessage):
    """Member to all: the nonce it committed to (`privacy.secagg.reveals.Reveal`)."""

    wire = pb.Reveal


@dataclass(frozen=True)
class RosterMessage(WireMessage):
    """Coordinator to member: all bundles of an epoch."""

    wire = pb.Roster
    bundles: tuple[Signed, ...]

    def __post_init__(self) -> None:
        check_signed_list("bundles", self.bundles)

    def _to_wire(self) -> pb.Roster:
        return pb.Roster(bundles=[signed_to_wire(signed) for signed in self.bundles])

    @classmethod
    def _from_wire(cls, parsed: Any) -> Self:
        return cls(tuple(signed_from_wire(signed) for signed in parsed.bundles))


@dataclass(frozen=True)
class RevealsMessage(WireMessage):
    """Coordinator to member: all nonces of an epoch."""

    wire = pb.Reveals
    reveals: tuple[Signed, ...]

    def __post_init__(self) -> None:
        check_signed_list("reveals", self.reveals)

    def _to_wire(self) -> pb.Reveals:
        return pb.Reveals(reveals=[signed_to_wire(signed) for signed in self.reveals])

    @classmethod
    def _from_wire(cls, parsed: Any) -> Self:
        return cls(tuple(signed_from_wire(signed) for signed in parsed.reveals))
