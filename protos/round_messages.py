"""Messages that drive a run around its masked sums: epochs, upload requests, ledger heads.

Like those of `protos.messages`, each has one exact encoding and checks its fields once.
"""

from dataclasses import dataclass
from typing import Any, Self

from google.protobuf.message import Message  # type: ignore[import-untyped]

from protos.arion.v1 import rounds_pb2 as pb
from protos.signed import Signed
from protos.wire import (
    DIGEST_BYTES,
    WireMessage,
    check_length,
    check_name,
    check_signed,
    refuse,
    signed_from_wire,
    signed_to_wire,
)

LARGEST_TEXT = 200
LARGEST_RECIPE_BYTES = 4096
LARGEST_PROOF = 64


@dataclass(frozen=True)
class EpochRequest(WireMessage):
    """Coordinator to member: publish your keys of this epoch."""

    wire = pb.EpochRequest
    federation: str
    epoch: int

    def __post_init__(self) -> None:
        _check_text("federation", self.federation)
        if not 1 <= self.epoch < 2**53:
            refuse("epoch", "a number from 1", self.epoch)

    def _to_wire(self) -> Message:
        return pb.EpochRequest(federation=self.federation, epoch=self.epoch)

    @classmethod
    def _from_wire(cls, parsed: Any) -> Self:
        return cls(parsed.federation, parsed.epoch)


@dataclass(frozen=True)
class UploadRequest(WireMessage):
    """Coordinator to member: train under this plan; the trainable parameters travel beside it.

    Attributes:
        plan: the signed round plan.
        recipe: canonical JSON of `models.training_settings.Recipe`, whose digest the plan names.

    """

    wire = pb.UploadRequest
    plan: Signed
    recipe: bytes

    def __post_init__(self) -> None:
        check_signed("plan", self.plan)
        if not 0 < len(self.recipe) <= LARGEST_RECIPE_BYTES:
            refuse("recipe", f"1 to {LARGEST_RECIPE_BYTES} bytes", len(self.recipe))

    def _to_wire(self) -> Message:
        return pb.UploadRequest(plan=signed_to_wire(self.plan), recipe=self.recipe)

    @classmethod
    def _from_wire(cls, parsed: Any) -> Self:
        return cls(signed_from_wire(parsed.plan), parsed.recipe)


@dataclass(frozen=True)
class HeadQuery(WireMessage):
    """Coordinator to member: say how much of this ledger you hold a head of."""

    wire = pb.HeadQuery
    ledger: str

    def __post_init__(self) -> None:
        check_name(self.ledger)

    def _to_wire(self) -> Message:
        return pb.HeadQuery(ledger=self.ledger)

    @classmethod
    def _from_wire(cls, parsed: Any) -> Self:
        return cls(parsed.ledger)


@dataclass(frozen=True)
class HeadHeld(WireMessage):
    """Member to coordinator: the newest head that it holds of the coordinator's ledger.

    Attributes:
        head: as the coordinator signed it; None before the first.

    """

    wire = pb.HeadHeld
    head: Signed | None

    def __post_init__(self) -> None:
        if self.head is not None:
            check_signed("head", self.head)

    def _to_wire(self) -> Message:
        return pb.HeadHeld(head=None if self.head is None else signed_to_wire(self.head))

    @classmethod
    def _from_wire(cls, parsed: Any) -> Self:
        return cls(signed_from_wire(parsed.head) if parsed.HasField("head") else None)


@dataclass(frozen=True)
class HeadOffer(WireMessage):
    """Coordinator to member: the newest head of its ledger, with a consistency proof."""

    wire = pb.HeadOffer
    head: Signed
    proof: tuple[bytes, ...]

    def __post_init__(self) -> None:
        check_signed("head", self.head)
        if len(self.proof) > LARGEST_PROOF:
            refuse("proof", f"at most {LARGEST_PROOF} hashes", len(self.proof))
        for node in self.proof:
            check_length("proof", node, DIGEST_BYTES)

    def _to_wire(self) -> Message:
        return pb.HeadOffer(head=signed_to_wire(self.head), proof=self.proof)

    @classmethod
    def _from_wire(cls, parsed: Any) -> Self:
        return cls(signed_from_wire(parsed.head), tuple(parsed.proof))


@dataclass(frozen=True)
class HeadCountersigned(WireMessage):
    """Member to coordinator: its countersignature under the head offered.

    Attributes:
        signed: the countersignature.
        own: newest head of the member's own ledger, to be shown to it again after a restart.

    """

    wire = pb.HeadCountersigned
    signed: Signed
    own: Signed

    def __post_init__(self) -> None:
        check_signed("signed", self.signed)
        check_signed("own", self.own)

    def _to_wire(self) -> Message:
        return pb.HeadCountersigned(
            signed=signed_to_wire(self.signed), own=signed_to_wire(self.own)
        )

    @classmethod
    def _from_wire(cls, parsed: Any) -> Self:
        return cls(signed_from_wire(parsed.signed), signed_from_wire(parsed.own))


@dataclass(frozen=True)
class OwnHeadShown(WireMessage):
    """Coordinator to member: the newest head of its own ledger that the coordinator holds.

    Attributes:
        head: signed by the member itself; None before the first.

    """

    wire = pb.OwnHeadShown
    head: Signed | None

    def __post_init__(self) -> None:
        if self.head is not None:
            check_signed("head", self.head)

    def _to_wire(self) -> Message:
        return pb.OwnHeadShown(head=None if self.head is None else signed_to_wire(self.head))

    @classmethod
    def _from_wire(cls, parsed: Any) -> Self:
        return cls(signed_from_wire(parsed.head) if parsed.HasField("head") else None)


@dataclass(frozen=True)
class OwnHead(WireMessage):
    """Member to coordinator: the newest head of its own ledger, which extends the one shown."""

    wire = pb.OwnHead
    head: Signed

    def __post_init__(self) -> None:
        check_signed("head", self.head)

    def _to_wire(self) -> Message:
        return pb.OwnHead(head=signed_to_wire(self.head))

    @classmethod
    def _from_wire(cls, parsed: Any) -> Self:
        return cls(signed_from_wire(parsed.head))


@dataclass(frozen=True)
class RunClose(WireMessage):
    """Coordinator to member: this run makes no more releases."""

    wire = pb.RunClose
    federation: str
    run: str

    def __post_init__(self) -> None:
        _check_text("federation", self.federation)
        _check_text("run", self.run)

    def _to_wire(self) -> Message:
        return pb.RunClose(federation=self.federation, run=self.run)

    @classmethod
    def _from_wire(cls, parsed: Any) -> Self:
        return cls(parsed.federation, parsed.run)


@dataclass(frozen=True)
class Done(WireMessage):
    """Member to coordinator: done."""

    wire = pb.Done

    def _to_wire(self) -> Message:
        return pb.Done()

    @classmethod
    def _from_wire(cls, parsed: Any) -> Self:
        return cls()


def _check_text(field: str, text: str) -> None:
    if not 0 < len(text) <= LARGEST_TEXT:
        refuse(field, f"1 to {LARGEST_TEXT} characters", len(text))
