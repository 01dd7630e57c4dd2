"""Messages of secure aggregation: frozen, checked once when they are built, exact on the wire.

`from_bytes` accepts the one encoding that `to_bytes` gives, and raises WireError for all else.
What a signature or a digest must match is decided in `privacy.secagg`, not here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from protos.arion.v1 import secagg_pb2 as pb
from protos.signed import Signed
from protos.wire import (
    DIGEST_BYTES,
    LARGEST_COHORT,
    SIGNATURE_BYTES,
    WireError,
    WireMessage,
    check_length,
    check_name,
    check_names,
    check_signed,
    check_signed_list,
    refuse,
    signed_from_wire,
    signed_to_wire,
)

__all__ = [
    "EdgeCommitment",
    "EdgeShare",
    "ProvenPacket",
    "Refusal",
    "SealedPacket",
    "Signed",
    "SurvivorShares",
    "SurvivorSignature",
    "SurvivorsRequest",
    "UnmaskReply",
    "UnmaskRequest",
    "Upload",
    "WireError",
    "WireMessage",
]

SHARE_BYTES = 32
TAG_BYTES = 16
LARGEST_TEXT = 1_000
LARGEST_PACKET_PROOF = 10  # of a tree over 1,000 packets


@dataclass(frozen=True)
class SealedPacket:
    """Shares under AES-256-GCM for `node`, a member of the committee."""

    node: str
    sealed: bytes

    def __post_init__(self) -> None:
        _check_sealed(self.sealed)


@dataclass(frozen=True)
class ProvenPacket:
    """The packet that `node` sealed, and the inclusion proof under its header's root."""

    node: str
    sealed: bytes
    proof: tuple[bytes, ...]

    def __post_init__(self) -> None:
        _check_sealed(self.sealed)
        if len(self.proof) > LARGEST_PACKET_PROOF:
            refuse("proof", f"at most {LARGEST_PACKET_PROOF} hashes", len(self.proof))
        for hashed in self.proof:
            check_length("proof", hashed, DIGEST_BYTES)


@dataclass(frozen=True)
class EdgeCommitment:
    """One-way image of the seed that the sender shares with a peer."""

    peer: str
    commitment: bytes

    def __post_init__(self) -> None:
        check_length("commitment", self.commitment, DIGEST_BYTES)


@dataclass(frozen=True)
class Upload(WireMessage):
    """Member to coordinator: everything of an upload but the masked words.

    Attributes:
        node: the member.
        header: signed header (`privacy.secagg.header.Header`).
        words_digest: BLAKE3 of the masked words, which travel apart.
        own_commitment: one-way image of the member's own seed.
        edge_commitments: one per peer, sorted.
        packets: one per committee member, sorted.

    """

    wire = pb.Upload
    node: str
    header: Signed
    words_digest: bytes
    own_commitment: bytes
    edge_commitments: tuple[EdgeCommitment, ...]
    packets: tuple[SealedPacket, ...]

    def __post_init__(self) -> None:
        check_name(self.node)
        check_signed("header", self.header)
        check_length("words_digest", self.words_digest, DIGEST_BYTES)
        check_length("own_commitment", self.own_commitment, DIGEST_BYTES)
        check_names([edge.peer for edge in self.edge_commitments])
        check_names([packet.node for packet in self.packets])

    def _to_wire(self) -> pb.Upload:
        return pb.Upload(
            node=self.node,
            header=signed_to_wire(self.header),
            words_digest=self.words_digest,
            own_commitment=self.own_commitment,
            edge_commitments=[
                pb.EdgeCommitment(peer=edge.peer, commitment=edge.commitment)
                for edge in self.edge_commitments
            ],
            packets=_packets_to_wire(self.packets),
        )

    @classmethod
    def _from_wire(cls, parsed: Any) -> Self:
        return cls(
            parsed.node,
            signed_from_wire(parsed.header),
            parsed.words_digest,
            parsed.own_commitment,
            tuple(EdgeCommitment(edge.peer, edge.commitment) for edge in parsed.edge_commitments),
            _packets_from_wire(parsed.packets),
        )


@dataclass(frozen=True)
class SurvivorsRequest(WireMessage):
    """Coordinator to member: the headers of all survivors, sorted by name."""

    wire = pb.SurvivorsRequest
    plan_digest: bytes
    headers: tuple[Signed, ...]

    def __post_init__(self) -> None:
        check_length("plan_digest", self.plan_digest, DIGEST_BYTES)
        check_signed_list("headers", self.headers)

    def _to_wire(self) -> pb.SurvivorsRequest:
        headers = [signed_to_wire(header) for header in self.headers]
        return pb.SurvivorsRequest(plan_digest=self.plan_digest, headers=headers)

    @classmethod
    def _from_wire(cls, parsed: Any) -> Self:
        return cls(parsed.plan_digest, tuple(signed_from_wire(h) for h in parsed.headers))


@dataclass(frozen=True)
class SurvivorSignature(WireMessage):
    """Member to coordinator: a signature on the one set this member stands for."""

    wire = pb.SurvivorSignature
    node: str
    plan_digest: bytes
    set_digest: bytes
    signature: bytes

    def __post_init__(self) -> None:
        check_name(self.node)
        check_length("plan_digest", self.plan_digest, DIGEST_BYTES)
        check_length("set_digest", self.set_digest, DIGEST_BYTES)
        check_length("signature", self.signature, SIGNATURE_BYTES)

    def _to_wire(self) -> pb.SurvivorSignature:
        return pb.SurvivorSignature(
            node=self.node,
            plan_digest=self.plan_digest,
            set_digest=self.set_digest,
            signature=self.signature,
        )

    @classmethod
    def _from_wire(cls, parsed: Any) -> Self:
        return cls(parsed.node, parsed.plan_digest, parsed.set_digest, parsed.signature)


@dataclass(frozen=True)
class UnmaskRequest(WireMessage):
    """Coordinator to member: the certified set, and the packets that survivors sealed for it."""

    wire = pb.UnmaskRequest
    plan_digest: bytes
    headers: tuple[Signed, ...]
    certificate: tuple[SurvivorSignature, ...]
    packets: tuple[ProvenPacket, ...]

    def __post_init__(self) -> None:
        check_length("plan_digest", self.plan_digest, DIGEST_BYTES)
        check_signed_list("headers", self.headers)
        check_names([signature.node for signature in self.certificate])
        check_names([packet.node for packet in self.packets])

    def _to_wire(self) -> pb.UnmaskRequest:
        return pb.UnmaskRequest(
            plan_digest=self.plan_digest,
            headers=[signed_to_wire(header) for header in self.headers],
            certificate=[signature._to_wire() for signature in self.certificate],
            packets=[
                pb.ProvenPacket(node=packet.node, sealed=packet.sealed, proof=packet.proof)
                for packet in self.packets
            ],
        )

    @classmethod
    def _from_wire(cls, parsed: Any) -> Self:
        return cls(
            parsed.plan_digest,
            tuple(signed_from_wire(header) for header in parsed.headers),
            tuple(SurvivorSignature._from_wire(signature) for signature in parsed.certificate),
            tuple(
                ProvenPacket(packet.node, packet.sealed, tuple(packet.proof))
                for packet in parsed.packets
            ),
        )


@dataclass(frozen=True)
class EdgeShare:
    """A share of the seed between a survivor and a member that is not in the sum."""

    dropped: str
    share: bytes

    def __post_init__(self) -> None:
        check_length("share", self.share, SHARE_BYTES)


@dataclass(frozen=True)
class SurvivorShares:
    """One member's shares of one survivor's secrets."""

    survivor: str
    own_share: bytes
    edge_shares: tuple[EdgeShare, ...]

    def __post_init__(self) -> None:
        check_length("own_share", self.own_share, SHARE_BYTES)
        check_names([edge.dropped for edge in self.edge_shares])


@dataclass(frozen=True)
class UnmaskReply(WireMessage):
    """Member to coordinator: its shares of every survivor whose packet opened."""

    wire = pb.UnmaskReply
    node: str
    plan_digest: bytes
    set_digest: bytes
    shares: tuple[SurvivorShares, ...]

    def __post_init__(self) -> None:
        check_name(self.node)
        check_length("plan_digest", self.plan_digest, DIGEST_BYTES)
        check_length("set_digest", self.set_digest, DIGEST_BYTES)
        check_names([entry.survivor for entry in self.shares])

    def _to_wire(self) -> pb.UnmaskReply:
        return pb.UnmaskReply(
            node=self.node,
            plan_digest=self.plan_digest,
            set_digest=self.set_digest,
            shares=[_shares_to_wire(entry) for entry in self.shares],
        )

    @classmethod
    def _from_wire(cls, parsed: Any) -> Self:
        shares = tuple(_shares_from_wire(entry) for entry in parsed.shares)
        return cls(parsed.node, parsed.plan_digest, parsed.set_digest, shares)


@dataclass(frozen=True)
class Refusal(WireMessage):
    """Either side to the other: no, and why; `detail` never holds a private value."""

    wire = pb.Refusal
    code: str
    clause: str
    detail: str

    def __post_init__(self) -> None:
        check_name(self.code)
        for name, text in (("clause", self.clause), ("detail", self.detail)):
            if len(text) > LARGEST_TEXT:
                refuse(name, f"at most {LARGEST_TEXT} characters", len(text))

    def _to_wire(self) -> pb.Refusal:
        return pb.Refusal(code=self.code, clause=self.clause, detail=self.detail)

    @classmethod
    def _from_wire(cls, parsed: Any) -> Self:
        return cls(parsed.code, parsed.clause, parsed.detail)


def _check_sealed(sealed: bytes) -> None:
    largest = LARGEST_COHORT * SHARE_BYTES + TAG_BYTES
    if not TAG_BYTES < len(sealed) <= largest:
        refuse("sealed", f"{TAG_BYTES + 1} to {largest} bytes", len(sealed))


def _packets_to_wire(packets: Sequence[SealedPacket]) -> list[pb.SealedPacket]:
    return [pb.SealedPacket(node=packet.node, sealed=packet.sealed) for packet in packets]


def _packets_from_wire(parsed: Any) -> tuple[SealedPacket, ...]:
    return tuple(SealedPacket(packet.node, packet.sealed) for packet in parsed)


def _shares_to_wire(entry: SurvivorShares) -> pb.SurvivorShares:
    edges = [pb.EdgeShare(dropped=edge.dropped, share=edge.share) for edge in entry.edge_shares]
    return pb.SurvivorShares(survivor=entry.survivor, own_share=entry.own_share, edge_shares=edges)


def _shares_from_wire(parsed: Any) -> SurvivorShares:
    edges = tuple(EdgeShare(edge.dropped, edge.share) for edge in parsed.edge_shares)
    return SurvivorShares(parsed.survivor, parsed.own_share, edges)
