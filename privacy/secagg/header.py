"""What a member signs of its upload, what a survivor set is, and how a round's keys derive.

Nodes and the coordinator read headers and survivor sets with this same code. Symbols: u, v
members, s_uv the seed they share in a round, b_u the seed of u's own mask.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

import numpy as np
from blake3 import blake3
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from privacy.canonical import CanonicalError, canonical_bytes, parse_canonical
from privacy.identity import SignatureError, verify_signed
from privacy.rounds import RoundPlan
from privacy.secagg.graph import Group
from privacy.secagg.kdf import encode_parts, expand
from privacy.secagg.masks import Words
from privacy.secagg.roster import Roster
from protos.messages import SurvivorSignature, Upload
from protos.signed import Signed

_Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}$")]
_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]


class RefusalCode(StrEnum):
    """Why a member does not answer in a round; goes over the wire."""

    REPLAYED = "replayed"
    OTHER_ROSTER = "other-roster"
    BAD_WORDS = "bad-words"
    BAD_HEADER = "bad-header"
    OTHER_PLAN = "other-plan"
    BELOW_N_MIN = "below-n-min"
    FEW_NEIGHBOURS = "few-neighbours"
    NOT_ON_COMMITTEE = "not-on-committee"
    NOT_LISTED = "not-listed"
    SECOND_SET = "second-set"
    NOT_SIGNED = "not-signed"
    NO_QUORUM = "no-quorum"
    BAD_PACKET = "bad-packet"


class SecAggRefused(ValueError):  # noqa: N818  (a refusal is an outcome of the protocol)
    """A step of the protocol that this member does not take.

    Attributes:
        code: fixed code of the case.

    """

    def __init__(self, code: RefusalCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Header(BaseModel):
    """The signed summary of an upload.

    Attributes:
        plan: digest of the plan, hex.
        node: the member.
        words: `digest_words` of the masked words, hex.
        count: `masks.masked_one` under the masks of the words, hex.
        commitments: digest of all seed commitments, hex.
        packets_root: RFC 6962 root over the sealed packets in the committee's order, hex.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    plan: _Digest
    node: _Name
    words: _Digest
    count: _Count
    commitments: _Digest
    packets_root: _Digest

    def payload(self) -> bytes:
        """Return the canonical bytes that are signed."""
        return canonical_bytes(self.model_dump(mode="json"))

    def upload_digest(self) -> bytes:
        """Return the digest that the upload's packet keys derive from, 32 bytes."""
        return upload_digest(
            bytes.fromhex(self.plan), bytes.fromhex(self.words), bytes.fromhex(self.commitments)
        )


@dataclass(frozen=True)
class SurvivorSet:
    """The members in a sum, with the headers that they signed.

    Attributes:
        plan_digest: 32 bytes.
        headers: by member, in order.
        digest: SHA-256 over plan, names and exact headers, 32 bytes.

    """

    plan_digest: bytes
    headers: Mapping[str, Header]
    digest: bytes

    def signed_payload(self) -> bytes:
        """Return the canonical bytes that committee members sign."""
        return survivors_payload(self.plan_digest, self.digest)


def read_survivors(
    plan: RoundPlan, roster: Roster, headers: Iterable[Signed], *, known: bytes | None = None
) -> SurvivorSet:
    """Check the headers of a survivor set.

    Args:
        plan: the round's plan.
        roster: the epoch's verified roster.
        headers: signed headers in the order of their members' names.
        known: digest of a set that the caller has checked before; the signatures of that very set
            are not checked again.

    Returns:
        The set.

    Raises:
        SecAggRefused: a header that is not its member's for this very plan (BAD_HEADER,
            OTHER_PLAN), names out of order, twice or of several groups, fewer than n_min
            (BELOW_N_MIN), or one with too few neighbours among the others (FEW_NEIGHBOURS).

    """
    plan_digest = plan.digest()
    signed = list(headers)
    digest = digest_survivors(plan_digest, signed)
    if digest == known:
        read = [Header.model_validate_json(header.payload) for header in signed]
    else:
        read = [verify_header(header, plan_digest, roster) for header in signed]
    names = [header.node for header in read]
    if names != sorted(set(names)):
        raise SecAggRefused(
            RefusalCode.BAD_HEADER, "Expected headers in order of names, each once, got others."
        )
    if len(names) < plan.n_min:
        raise SecAggRefused(
            RefusalCode.BELOW_N_MIN,
            f"Expected at least n_min = {plan.n_min} survivors, got {len(names)}. "
            "Start a new attempt.",
        )
    _check_group(plan, roster.group_of(plan, names[0]), frozenset(names))
    return SurvivorSet(plan_digest, dict(zip(names, read, strict=True)), digest)


def digest_survivors(plan_digest: bytes, headers: Iterable[Signed]) -> bytes:
    """Return the digest of a survivor set, over plan and exact headers, 32 bytes."""
    parts = [part for header in headers for part in (header.payload, header.signature)]
    return hashlib.sha256(encode_parts(b"survivors", plan_digest, *parts)).digest()


def _check_group(plan: RoundPlan, group: Group, names: frozenset[str]) -> None:
    """Every survivor must mask with enough others, or its vector might come apart from the sum."""
    if not names <= group.neighbours.keys():
        raise SecAggRefused(
            RefusalCode.BAD_HEADER, "Expected headers of members of one group, got others."
        )
    lonely = [name for name in names if len(names & group.neighbours[name]) < plan.least_neighbours]
    if lonely:
        raise SecAggRefused(
            RefusalCode.FEW_NEIGHBOURS,
            f"Expected at least {plan.least_neighbours} neighbours of every survivor in the sum, "
            f"got fewer for {sorted(lonely)[:5]}. Start a new attempt.",
        )


def verify_header(signed: Signed, plan_digest: bytes, roster: Roster) -> Header:
    """Check one header: canonical, its member's signature, this plan.

    Raises:
        SecAggRefused: with code BAD_HEADER or OTHER_PLAN.

    """
    try:
        parse_canonical(signed.payload)
        header = Header.model_validate_json(signed.payload)
        verify_signed(roster.pins[header.node], "header", signed)
    except (CanonicalError, ValidationError, SignatureError, KeyError) as error:
        raise SecAggRefused(
            RefusalCode.BAD_HEADER,
            f"Expected a header signed by its pinned member, got {type(error).__name__}. Check "
            "that all members run the same version.",
        ) from error
    if header.plan != plan_digest.hex():
        raise SecAggRefused(
            RefusalCode.OTHER_PLAN,
            f"Expected headers of plan {plan_digest.hex()[:16]}, got one of {header.node!r} for "
            f"plan {header.plan[:16]}: the coordinator showed different plans.",
        )
    return header


def verify_survivor_signature(signature: SurvivorSignature, roster: Roster) -> bool:
    """Tell whether a member signed the set that the message names."""
    payload = survivors_payload(signature.plan_digest, signature.set_digest)
    pin = roster.pins.get(signature.node)
    if pin is None:
        return False
    try:
        verify_signed(pin, "survivors", Signed(payload, signature.signature))
    except SignatureError:
        return False
    return True


def survivors_payload(plan_digest: bytes, set_digest: bytes) -> bytes:
    """Return the canonical bytes that stand for a survivor set."""
    return canonical_bytes({"version": 1, "plan": plan_digest.hex(), "survivors": set_digest.hex()})


def digest_words(words: Words) -> bytes:
    """Return the digest of a vector that a header names: BLAKE3, 32 bytes.

    Source: O'Connor, Aumasson, Neves, Wilcox-O'Hearn 2020 (the BLAKE3 specification). Long vectors
    are hashed by their node and again by the coordinator, and SHA-256 would be most of its work.
    """
    return blake3(np.ascontiguousarray(words).view(np.uint8).data).digest()


def upload_digest(plan_digest: bytes, words_digest: bytes, commitments: bytes) -> bytes:
    """Return the digest of an upload without its packets, 32 bytes.

    Packet keys derive from it. An own seed is drawn anew for every upload, so after a rollback
    (a restored disk) the digest, and with it every packet key, is another one.
    """
    return hashlib.sha256(encode_parts(b"upload", plan_digest, words_digest, commitments)).digest()


def commitments_digest(upload: Upload) -> bytes:
    """Return the digest of an upload's seed commitments, 32 bytes."""
    return digest_commitments(
        upload.own_commitment, {edge.peer: edge.commitment for edge in upload.edge_commitments}
    )


def digest_commitments(own: bytes, edges: Mapping[str, bytes]) -> bytes:
    """Return the digest of an own commitment and of those of all edges, 32 bytes."""
    parts = [part for peer in sorted(edges) for part in (peer.encode(), edges[peer])]
    return hashlib.sha256(encode_parts(b"commitments", own, *parts)).digest()


def commit_own(seed: bytes, plan_digest: bytes, node: str) -> bytes:
    """Return the commitment to b_u: one-way, binding by SHA-256, 32 bytes."""
    return expand(seed, b"commit-own", plan_digest, node.encode())


def commit_edge(seed: bytes, plan_digest: bytes, first: str, second: str) -> bytes:
    """Return the commitment to s_uv, the same at both ends, 32 bytes."""
    low, high = sorted((first, second))
    return expand(seed, b"commit-edge", plan_digest, low.encode(), high.encode())


def mask_key(seed: bytes, plan_digest: bytes) -> bytes:
    """Return the AES key of the mask that a seed stands for, 32 bytes."""
    return expand(seed, b"mask", plan_digest)


def mask_sign(node: str, peer: str) -> Literal[1, -1]:
    """Return how `node` applies the mask it shares with `peer`: the peer applies the opposite."""
    return 1 if node < peer else -1
