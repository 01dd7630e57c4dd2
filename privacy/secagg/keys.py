"""Epoch keys: what a member publishes for an epoch, and the private halves that it keeps.

Keys live for one epoch, in memory or tmpfs only.
"""

import hashlib
import os
from typing import Annotated, Literal, Self

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from privacy.canonical import canonical_bytes
from privacy.identity import IdentityKey, Signed
from privacy.secagg.kdf import KEY_BYTES, encode_parts, expand

KEM_SEED_BYTES = 64
Kind = Literal["mask", "packet"]

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}$")]
Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_HexKemKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{2368}$")]


class RosterError(ValueError):
    """Key bundles that this member does not accept; no round of the epoch may run on them."""


class KeysLostError(RosterError):
    """A member holds no keys of the epoch that is meant: it started again, or never had any."""

    code = "keys-lost"


class Statement(BaseModel):
    """What a member says of an epoch; its identity key signs the canonical bytes.

    Attributes:
        node: the member's name.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    node: Name

    def payload(self) -> bytes:
        """Return the canonical bytes that are signed."""
        return canonical_bytes(self.model_dump(mode="json"))


class KeyBundle(Statement):
    """A member's public keys of one epoch.

    Attributes:
        mask_key: X25519 public key for pairwise masks, hex.
        encryption_key: X25519 public key for sealed packets, hex.
        nonce_commitment: `commit_nonce` of the nonce that is revealed once all have committed, hex.
        kem_key: ML-KEM-768 public key where the epoch's secrets are hybrid, hex.

    """

    federation: str = Field(min_length=1, max_length=200)
    epoch: int = Field(ge=1, lt=2**53)
    mask_key: Hex32
    encryption_key: Hex32
    nonce_commitment: Hex32
    kem_key: _HexKemKey | None = None


def commit_nonce(nonce: bytes, federation: str, epoch: int, node: str) -> bytes:
    """Return the commitment to a nonce: hiding, as nonces are uniform, and binding; 32 bytes."""
    named = federation.encode(), epoch.to_bytes(8, "big"), node.encode()
    return hashlib.sha256(encode_parts(b"nonce", nonce, *named)).digest()


class EpochKeys:
    """A member's secrets of one epoch: an X25519 key per purpose, a nonce, an ML-KEM-768 seed.

    Source: RFC 7748, section 6.1; FIPS 203, section 3.3 (the seed d || z).
    """

    def __init__(
        self,
        mask_key: X25519PrivateKey,
        encryption_key: X25519PrivateKey,
        nonce: bytes,
        kem_seed: bytes,
    ) -> None:
        self._keys: dict[Kind, X25519PrivateKey] = {"mask": mask_key, "packet": encryption_key}
        self.nonce, self._kem_seed = nonce, kem_seed

    @classmethod
    def generate(cls) -> Self:
        """Make new keys from the system's CSPRNG."""
        return cls.from_bytes(os.urandom(EPOCH_BYTES))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            RosterError: another length.

        """
        if len(raw) != EPOCH_BYTES:
            raise RosterError(
                f"Expected {EPOCH_BYTES} bytes of epoch keys, got {len(raw)}. Start a new epoch."
            )
        parts = [raw[at : at + KEY_BYTES] for at in range(0, 3 * KEY_BYTES, KEY_BYTES)]
        private = [X25519PrivateKey.from_private_bytes(part) for part in parts[:2]]
        return cls(private[0], private[1], parts[2], raw[3 * KEY_BYTES :])

    def to_bytes(self) -> bytes:
        """Return the secrets, 160 bytes, for tmpfs only: never for a disk or a backup."""
        private = b"".join(key.private_bytes_raw() for key in self._keys.values())
        return private + self.nonce + self._kem_seed

    def bundle(
        self, federation: str, epoch: int, node: str, identity: IdentityKey, *, hybrid: bool = False
    ) -> Signed:
        """Sign the public keys, with an ML-KEM-768 key where secrets shall be hybrid."""
        public = {kind: key.public_key().public_bytes_raw() for kind, key in self._keys.items()}
        bundle = KeyBundle(
            federation=federation,
            epoch=epoch,
            node=node,
            mask_key=public["mask"].hex(),
            encryption_key=public["packet"].hex(),
            nonce_commitment=commit_nonce(self.nonce, federation, epoch, node).hex(),
            kem_key=self._kem_key().public_key().public_bytes_raw().hex() if hybrid else None,
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

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """Return the ML-KEM-768 secret of a ciphertext, 32 bytes (FIPS 203, section 7.3).

        A ciphertext that was altered gives another secret, not an error: implicit rejection.

        Raises:
            RosterError: a ciphertext of another length.

        """
        try:
            return self._kem_key().decapsulate(ciphertext)
        except ValueError as error:
            raise RosterError(
                f"Expected an ML-KEM-768 ciphertext, got {len(ciphertext)} bytes. Its sender must "
                "enter the epoch again."
            ) from error

    def own_secret(self) -> bytes:
        """Return what stands for the ML-KEM-768 secret in packets to ourselves, 32 bytes."""
        return expand(self._kem_seed, b"own")

    def _kem_key(self) -> MLKEM768PrivateKey:
        return MLKEM768PrivateKey.from_seed_bytes(self._kem_seed)


EPOCH_BYTES = 3 * KEY_BYTES + KEM_SEED_BYTES
"""Length of `EpochKeys.to_bytes`."""


def encapsulate(kem_key: bytes) -> tuple[bytes, bytes]:
    """Return (secret of 32 bytes, ciphertext of 1,088) for an ML-KEM-768 key (FIPS 203, 7.2).

    Raises:
        RosterError: bytes that are not an encoded key.

    """
    try:
        return MLKEM768PublicKey.from_public_bytes(kem_key).encapsulate()
    except ValueError as error:
        raise RosterError(
            "Expected an ML-KEM-768 public key, got other bytes. Its owner must publish a new "
            "bundle."
        ) from error
