"""Epoch keys: who shares which secret with whom, and how a round's seeds come from it.

Keys live for one epoch, in memory or tmpfs only. A revealed round seed tells nothing about another
round: seeds are one-way expansions of a secret that never leaves its two owners.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from privacy.canonical import CanonicalError, canonical_bytes, parse_canonical
from privacy.identity import IdentityKey, SignatureError, Signed, verify_signed

KEY_BYTES = 32
Kind = Literal["mask", "packet"]

_Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}$")]
_HexKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class RosterError(ValueError):
    """Key bundles that this member does not accept; no round of the epoch may run on them."""


class KeyBundle(BaseModel):
    """A member's public keys of one epoch; its identity key signs the canonical bytes.

    Attributes:
        mask_key: X25519 public key for pairwise masks, hex.
        encryption_key: X25519 public key for sealed packets, hex.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    federation: str = Field(min_length=1, max_length=200)
    epoch: int = Field(ge=1, lt=2**53)
    node: _Name
    mask_key: _HexKey
    encryption_key: _HexKey

    def payload(self) -> bytes:
        """Return the canonical bytes that are signed."""
        return canonical_bytes(self.model_dump(mode="json"))


class EpochKeys:
    """A member's private keys of one epoch: two X25519 keys, one per purpose.

    Source: RFC 7748, section 6.1.
    """

    def __init__(self, mask_key: X25519PrivateKey, encryption_key: X25519PrivateKey) -> None:
        self._keys: dict[Kind, X25519PrivateKey] = {"mask": mask_key, "packet": encryption_key}

    @classmethod
    def generate(cls) -> Self:
        """Make new keys from the system's CSPRNG."""
        return cls(X25519PrivateKey.generate(), X25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            RosterError: another length.

        """
        if len(raw) != 2 * KEY_BYTES:
            raise RosterError(
                f"Expected {2 * KEY_BYTES} bytes of epoch keys, got {len(raw)}. Start a new epoch."
            )
        halves = raw[:KEY_BYTES], raw[KEY_BYTES:]
        return cls(*(X25519PrivateKey.from_private_bytes(half) for half in halves))

    def to_bytes(self) -> bytes:
        """Return the private keys, 64 bytes, for tmpfs only: never for a disk or a backup."""
        return b"".join(key.private_bytes_raw() for key in self._keys.values())

    def bundle(self, federation: str, epoch: int, node: str, identity: IdentityKey) -> Signed:
        """Sign the public keys with the member's identity key."""
        public = {kind: key.public_key().public_bytes_raw() for kind, key in self._keys.items()}
        bundle = KeyBundle(
            federation=federation,
            epoch=epoch,
            node=node,
            mask_key=public["mask"].hex(),
            encryption_key=public["packet"].hex(),
        )
        return identity.sign("bundle", bundle.payload())

    def exchange(self, kind: Kind, public_key: bytes) -> bytes:
        """Return the X25519 shared secret, 32 bytes.

        Raises:
            RosterError: a public key of low order, which would make the secret known to all.

        Source: RFC 7748, sections 5 and 6.1 (the all-zero check).

        """
        try:
            return self._keys[kind].exchange(X25519PublicKey.from_public_bytes(public_key))
        except ValueError as error:
            raise RosterError(
                "Expected an X25519 public key of full order, got one of low order or of "
                f"{len(public_key)} bytes. Its owner must publish a new bundle."
            ) from error


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

    """

    federation: str
    epoch: int
    bundles: tuple[KeyBundle, ...]
    digest: bytes
    pins: Mapping[str, bytes]
    own: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """Members' names, sorted."""
        return tuple(bundle.node for bundle in self.bundles)

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
) -> Roster:
    """Check the bundles that the coordinator relayed.

    1. Each is canonical and signed by the pinned identity of the member it names. 2. It is of this
    federation and epoch. 3. The members are exactly the pinned ones, each once. 4. No key occurs
    twice, for whatever purpose, in whatever spelling. 5. Our own bundle is among them, unchanged.

    Args:
        bundles: in any order.
        pins: identity keys of all members by name, compared out of band.
        own_bundle: what this member published; None at the coordinator.
        epoch: number of the epoch.
        federation: identifier of the federation.

    Returns:
        The roster.

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
    if names != sorted(pins):  # 3
        missing = sorted(set(pins) - set(names))
        _refuse("one bundle of each pinned member", f"{len(names)} bundles, missing {missing}")
    keys = [key for bundle in parsed for key in (bundle.mask_key, bundle.encryption_key)]
    if len(set(keys)) != len(keys):  # 4
        _refuse("a key of its own for every member and purpose", "one key twice")
    if not all(_is_canonical(bytes.fromhex(key)) for key in keys):  # 4
        _refuse("X25519 keys below 2^255 - 19", "another spelling of a key")
    if own_bundle is not None and own_bundle not in bundles:  # 5
        _refuse("this member's own bundle, unchanged", "another one, or none")
    own = None if own_bundle is None else _verified(own_bundle, pins).node
    digest = hashlib.sha256(
        canonical_bytes([bundle.model_dump(mode="json") for bundle in parsed])
    ).digest()
    return Roster(federation, epoch, tuple(parsed), digest, dict(pins), own)


@dataclass(frozen=True)
class PairwiseKeys:
    """Pairwise secrets of one member in an epoch: HKDF over the X25519 secret.

    Formal guarantee: the salt is the roster's digest, so two members who were shown different
    rosters share no secret, and their packets and masks do not match.

    Source: RFC 5869.
    """

    keys: EpochKeys
    roster: Roster
    _cache: dict[tuple[Kind, str], bytes] = field(default_factory=dict, repr=False)

    def prk(self, kind: Kind, peer: str) -> bytes:
        """Return the pairwise secret with a peer for one purpose, 32 bytes; never leaves here."""
        if (kind, peer) not in self._cache:
            secret = self.keys.exchange(kind, self.roster.public_key(kind, peer))
            info = encode_parts(kind.encode(), *_sorted_pair(self._own, peer))
            self._cache[kind, peer] = hkdf(secret, self.roster.digest, info)
        return self._cache[kind, peer]

    def round_seed(self, peer: str, plan_digest: bytes) -> bytes:
        """Return the seed of the mask that this member and a peer share in one round, 32 bytes."""
        pair = _sorted_pair(self._own, peer)
        return expand(self.prk("mask", peer), b"seed", plan_digest, *pair)

    @property
    def _own(self) -> str:
        assert self.roster.own is not None, "the coordinator holds no pairwise keys"
        return self.roster.own


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA256, extract and expand, to 32 bytes (RFC 5869)."""
    return HKDF(SHA256(), KEY_BYTES, salt, info).derive(secret)


def expand(key: bytes, *parts: bytes) -> bytes:
    """HKDF-Expand-SHA256 of a uniform key to 32 bytes; `parts` name the use (RFC 5869, 2.3)."""
    return HKDFExpand(SHA256(), KEY_BYTES, encode_parts(*parts)).derive(key)


def encode_parts(*parts: bytes) -> bytes:
    """Join byte strings so that different lists give different bytes: each with its length."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _sorted_pair(first: str, second: str) -> tuple[bytes, bytes]:
    low, high = sorted((first, second))
    return low.encode(), high.encode()


def _is_canonical(public_key: bytes) -> bool:
    """Tell whether an X25519 key is spelled as the field element it stands for (RFC 7748, 5)."""
    return int.from_bytes(public_key, "little") < 2**255 - 19


def _verified(signed: Signed, pins: Mapping[str, bytes]) -> KeyBundle:
    """Read a bundle and check it under the pin of the member it names."""
    try:
        parse_canonical(signed.payload)
        bundle = KeyBundle.model_validate_json(signed.payload)
    except (CanonicalError, ValidationError) as error:
        raise RosterError(
            f"Expected a key bundle, got bytes that are not one: {type(error).__name__}."
        ) from error
    if bundle.node not in pins:
        _refuse("bundles of pinned members", f"one of {bundle.node!r}, who is not pinned")
    try:
        verify_signed(pins[bundle.node], "bundle", signed)
    except SignatureError as error:
        raise RosterError(f"Bundle of {bundle.node!r}: {error}") from error
    return bundle


def _refuse(expected: str, got: str) -> None:
    raise RosterError(f"Expected {expected}, got {got}. Ask the coordinator for the epoch again.")
