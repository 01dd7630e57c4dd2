"""Whose keys an epoch runs on: bundles that all committed to, and nonces revealed after that.

First every member signs a bundle with a commitment to its nonce. Once it accepted all bundles it
reveals the nonce. What is drawn from all nonces together, graphs among it, nobody could choose who
had to commit first; a nonce that is missing ends the epoch for all. Members that are away when the
bundles are collected are not in the epoch.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from privacy.canonical import CanonicalError, canonical_bytes, parse_canonical
from privacy.identity import IdentityKey, SignatureError, Signed, verify_signed
from privacy.round_plan import RoundPlan
from privacy.secagg.graph import Group, Shape, attempt_seed, draw_groups
from privacy.secagg.kdf import encode_parts
from privacy.secagg.keys import (
    EpochKeys,
    Hex32,
    KeyBundle,
    Kind,
    Name,
    RosterError,
    commit_nonce,
    encapsulate,
)

_HexCiphertext = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{2176}$")]
LARGEST_HYBRID = 50


class Reveal(BaseModel):
    """A member's nonce, shown after it accepted the roster; its identity key signs the bytes.

    Attributes:
        roster: digest of the bundles that the member accepted, hex.
        nonce: what its bundle commits to, hex.
        ciphertexts: in a hybrid epoch, ML-KEM-768 ciphertexts for all members of later names, hex.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    node: Name
    roster: Hex32
    nonce: Hex32
    ciphertexts: dict[Name, _HexCiphertext] = Field(default_factory=dict, max_length=LARGEST_HYBRID)

    def payload(self) -> bytes:
        """Return the canonical bytes that are signed."""
        return canonical_bytes(self.model_dump(mode="json"))


@dataclass(frozen=True)
class Roster:
    """Verified bundles of one epoch.

    Attributes:
        federation: identifier of the federation.
        epoch: number of the epoch.
        bundles: one per member, sorted by name.
        digest: SHA-256 over the exact bundles, 32 bytes: equal only for equal keys.
        pins: identity keys by member, 32 bytes each.
        own: this member's name; None at the coordinator.
        graph_seed: of `accept_reveals`, 32 bytes; empty before.

    """

    federation: str
    epoch: int
    bundles: tuple[KeyBundle, ...]
    digest: bytes
    pins: Mapping[str, bytes]
    own: str | None
    graph_seed: bytes = b""

    @property
    def names(self) -> tuple[str, ...]:
        """Members' names, sorted."""
        return tuple(bundle.node for bundle in self.bundles)

    @property
    def own_commitment(self) -> bytes:
        """The commitment to our own nonce, 32 bytes."""
        bundle = next(bundle for bundle in self.bundles if bundle.node == self.own)
        return bytes.fromhex(bundle.nonce_commitment)

    @property
    def hybrid(self) -> bool:
        """Whether pairwise secrets need ML-KEM-768 too."""
        return self.bundles[0].kem_key is not None

    def groups(self, plan: RoundPlan) -> tuple[Group, ...]:
        """Return the groups of a plan's attempt, which no plan can choose.

        Raises:
            RosterError: before the nonces were revealed.

        """
        if not self.graph_seed:
            _refuse("all nonces of the epoch", "none yet")
        seed = attempt_seed(self.graph_seed, plan.round, plan.attempt)
        return draw_groups(seed, self.names, Shape(plan.groups, plan.degree, plan.committee))

    def group_of(self, plan: RoundPlan, name: str) -> Group:
        """Return the group that a member is in; RosterError as `groups`."""
        return next(group for group in self.groups(plan) if name in group.neighbours)

    def public_key(self, kind: Kind, node: str) -> bytes:
        """Return a member's X25519 public key for one purpose."""
        bundle = next(bundle for bundle in self.bundles if bundle.node == node)
        return bytes.fromhex(bundle.mask_key if kind == "mask" else bundle.encryption_key)


def accept_roster(
    bundles: Sequence[Signed],
    pins: Mapping[str, bytes],
    own_bundle: Signed | None,
    epoch: int,
    federation: str,
    *,
    least: int | None = None,
) -> Roster:
    """Check the bundles that the coordinator relayed.

    1. Each is canonical and signed by the pinned identity of the member it names. 2. It is of this
    federation and epoch. 3. No member is there twice, and enough of them are. 4. No key occurs
    twice, for whatever purpose, in whatever spelling. 5. Our own bundle is among them, unchanged.
    6. All have an ML-KEM-768 key or none has, and nobody another's nonce commitment.

    Args:
        bundles: in any order.
        pins: identity keys of all members by name, compared out of band.
        own_bundle: what this member published; None at the coordinator.
        epoch: number of the epoch.
        federation: identifier of the federation.
        least: how many members must be in it; None wants all that are pinned.

    Returns:
        The roster, without a graph as yet.

    Raises:
        RosterError: the first check that fails.

    """
    parsed = sorted((_verified(signed, pins) for signed in bundles), key=lambda b: b.node)  # 1
    for bundle in parsed:
        if (bundle.federation, bundle.epoch) != (federation, epoch):  # 2
            _refuse(
                f"bundles of {federation!r}, epoch {epoch}",
                f"{bundle.federation!r}, epoch {bundle.epoch} of {bundle.node!r}",
            )
    names = [bundle.node for bundle in parsed]
    wanted = len(pins) if least is None else least
    if len(set(names)) != len(names) or len(names) < wanted:  # 3
        missing = sorted(set(pins) - set(names))
        _refuse(
            f"one bundle each of at least {wanted} of the {len(pins)} pinned members",
            f"{len(names)} bundles, missing {missing}",
        )
    keys = [key for bundle in parsed for key in (bundle.mask_key, bundle.encryption_key)]
    if len(set(keys)) != len(keys):  # 4
        _refuse("a key of its own for every member and purpose", "one key twice")
    if not all(_is_canonical(bytes.fromhex(key)) for key in keys):  # 4
        _refuse("X25519 keys below 2^255 - 19", "another spelling of a key")
    if own_bundle is not None and own_bundle not in bundles:  # 5
        _refuse("this member's own bundle, unchanged", "another one, or none")
    kem_keys = {bundle.kem_key for bundle in parsed}
    if kem_keys != {None} and (None in kem_keys or len(kem_keys) != len(parsed)):  # 6
        _refuse("an ML-KEM-768 key of every member, or of none", "some, or one twice")
    if len({bundle.nonce_commitment for bundle in parsed}) != len(parsed):  # 6
        _refuse("a nonce of its own of every member", "one commitment twice")
    own = None if own_bundle is None else _verified(own_bundle, pins).node
    digest = hashlib.sha256(
        canonical_bytes([bundle.model_dump(mode="json") for bundle in parsed])
    ).digest()
    return Roster(federation, epoch, tuple(parsed), digest, dict(pins), own)


@dataclass(frozen=True)
class OwnReveal:
    """What a member reveals, and the secrets of the ciphertexts in it by receiver."""

    signed: Signed
    kem_secrets: Mapping[str, bytes]


def reveal(roster: Roster, keys: EpochKeys, identity: IdentityKey) -> OwnReveal:
    """Reveal the nonce of a roster that was accepted. In a hybrid epoch: once, as it draws secrets.

    Raises:
        RosterError: a hybrid epoch of more than 50 members, or a key that is not ML-KEM-768.

    """
    own = roster.own
    assert own is not None, "the coordinator has no nonce"
    later = [bundle for bundle in roster.bundles if roster.hybrid and bundle.node > own]
    if len(later) >= LARGEST_HYBRID:
        _refuse(f"at most {LARGEST_HYBRID} members in a hybrid epoch", f"{len(roster.bundles)}")
    drawn = {bundle.node: encapsulate(bytes.fromhex(bundle.kem_key or "")) for bundle in later}
    shown = Reveal(
        node=own,
        roster=roster.digest.hex(),
        nonce=keys.nonce.hex(),
        ciphertexts={name: ciphertext.hex() for name, (_, ciphertext) in drawn.items()},
    )
    secrets = {name: secret for name, (secret, _) in drawn.items()}
    if roster.hybrid:
        secrets[own] = keys.own_secret()
    return OwnReveal(identity.sign("reveal", shown.payload()), secrets)


def verify_reveal(signed: Signed, roster: Roster, node: str) -> None:
    """Check one reveal by itself, as `accept_reveals` checks all.

    Args:
        signed: what a member sent.
        roster: of the epoch.
        node: the member.

    Raises:
        RosterError: no reveal, one of another member or roster, or not what it committed to.

    """
    shown = _read_reveal(signed, roster)
    if shown.node != node:
        _refuse(f"a nonce of {node!r}", f"one of {shown.node!r}")
    bundle = next(bundle for bundle in roster.bundles if bundle.node == node)
    _check_reveal(shown, bundle, roster)


def accept_reveals(
    roster: Roster, reveals: Sequence[Signed], own_reveal: Signed | None
) -> tuple[Roster, Mapping[str, bytes]]:
    """Check the reveals that the coordinator relayed.

    1. Each is canonical and signed by its member. 2. It is for this very roster. 3. Everyone
    revealed, once. 4. Every nonce is the one committed to. 5. Our own is among them, unchanged.
    6. In a hybrid epoch each holds a ciphertext for every member of a later name.

    Args:
        roster: what `accept_roster` returned.
        reveals: in any order.
        own_reveal: what this member revealed; None at the coordinator.

    Returns:
        The roster with its graph seed, and the ciphertexts for this member by sender.

    Raises:
        RosterError: the first check that fails; the epoch is over for all.

    """
    parsed = sorted((_read_reveal(signed, roster) for signed in reveals), key=lambda r: r.node)
    if [shown.node for shown in parsed] != list(roster.names):  # 3
        missing = sorted(set(roster.names) - {shown.node for shown in parsed})
        _refuse("one nonce of each member", f"{len(parsed)}, missing {missing}")
    for shown, bundle in zip(parsed, roster.bundles, strict=True):
        _check_reveal(shown, bundle, roster)  # 4, 6
    if own_reveal is not None and own_reveal not in reveals:  # 5
        _refuse("this member's own nonce, unchanged", "another one, or none")
    nonces = [bytes.fromhex(shown.nonce) for shown in parsed]
    seed = hashlib.sha256(encode_parts(b"graph-seed", roster.digest, *nonces)).digest()
    received = {
        shown.node: bytes.fromhex(shown.ciphertexts[roster.own])
        for shown in parsed
        if roster.own is not None and roster.own in shown.ciphertexts
    }
    return replace(roster, graph_seed=seed), received


def _is_canonical(public_key: bytes) -> bool:
    """Tell whether an X25519 key is spelled as the field element it stands for (RFC 7748, 5)."""
    return int.from_bytes(public_key, "little") < 2**255 - 19


_Read = TypeVar("_Read", KeyBundle, Reveal)


def _verified(signed: Signed, pins: Mapping[str, bytes]) -> KeyBundle:
    return _signed_as(KeyBundle, "bundle", signed, pins)


def _read_reveal(signed: Signed, roster: Roster) -> Reveal:
    shown = _signed_as(Reveal, "reveal", signed, roster.pins)  # 1
    if shown.roster != roster.digest.hex():  # 2
        _refuse("nonces revealed for this roster", f"one of {shown.node!r} for another")
    return shown


def _signed_as(kind: type[_Read], domain: str, signed: Signed, pins: Mapping[str, bytes]) -> _Read:
    """Read what a member signed, and check it under the pin of the member it names."""
    try:
        parse_canonical(signed.payload)
        read = kind.model_validate_json(signed.payload)
    except (CanonicalError, ValidationError) as error:
        raise RosterError(
            f"Expected a {domain}, got bytes that are not one: {type(error).__name__}."
        ) from error
    if read.node not in pins:
        _refuse(f"a {domain} of pinned members", f"one of {read.node!r}, who is not pinned")
    try:
        verify_signed(pins[read.node], domain, signed)
    except SignatureError as error:
        raise RosterError(f"{domain.capitalize()} of {read.node!r}: {error}") from error
    return read


def _check_reveal(shown: Reveal, bundle: KeyBundle, roster: Roster) -> None:
    nonce = bytes.fromhex(shown.nonce)
    committed = commit_nonce(nonce, roster.federation, roster.epoch, shown.node).hex()
    if committed != bundle.nonce_commitment:
        _refuse("the nonce that the bundle commits to", f"another of {shown.node!r}")
    later = {name for name in roster.names if roster.hybrid and name > shown.node}
    if set(shown.ciphertexts) != later:
        _refuse("ciphertexts for all later members", f"others from {shown.node!r}")


def _refuse(expected: str, got: str) -> NoReturn:
    raise RosterError(f"Expected {expected}, got {got}. Ask the coordinator for the epoch again.")
