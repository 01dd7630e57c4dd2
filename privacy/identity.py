"""Long-lived identity keys: who signed what, told apart by domain.

An identity is one Ed25519 key that its institution makes and keeps. Others pin its public key
after comparing the fingerprint out of band; no certificate authority takes part.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from models.durable import sync
from protos.signed import Signed

__all__ = [
    "IdentityError",
    "IdentityKey",
    "SignatureError",
    "Signed",
    "fingerprint",
    "pre_authentication",
    "verify_signed",
]

_DOMAIN = re.compile(r"[a-z][a-z0-9-]{0,31}")
_KEY_BYTES = 32
_SIGNATURE_BYTES = 64
_FINGERPRINT_GROUP = 8


class IdentityError(ValueError):
    """An identity key that cannot be read or written."""


class SignatureError(ValueError):
    """Bytes that the expected key did not sign, in the expected domain."""


class IdentityKey:
    """An Ed25519 signing key.

    Source: RFC 8032, section 5.1 (PureEdDSA).
    """

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key

    @classmethod
    def generate(cls) -> Self:
        """Make a new key from the system's CSPRNG."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Build the key from its 32 private bytes.

        Raises:
            IdentityError: another length.

        """
        if len(raw) != _KEY_BYTES:
            raise IdentityError(
                f"Expected {_KEY_BYTES} bytes of an Ed25519 private key, got {len(raw)}. "
                "Use the key file that `IdentityKey.save` wrote."
            )
        return cls(Ed25519PrivateKey.from_private_bytes(raw))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key file that only its owner may read.

        Raises:
            IdentityError: unreadable, another length, or open to the group or to others.

        """
        try:
            mode = path.stat().st_mode
            raw = path.read_bytes()
        except OSError as error:
            raise IdentityError(
                f"Expected a readable key file {path.name}, got {error.strerror}. Check the path."
            ) from error
        if mode & 0o077:
            raise IdentityError(
                f"Expected mode 0600 on the key file {path.name}, got {mode & 0o777:04o}. "
                "Run chmod 600 on it, and consider the key exposed."
            )
        return cls.from_bytes(raw)

    def save(self, path: Path) -> None:
        """Write the key to a new file of mode 0600; it appears whole, and is on the disk.

        Raises:
            IdentityError: the file exists (a key is never overwritten) or cannot be written.

        """
        part = path.with_name(path.name + ".part")
        try:
            part.unlink(missing_ok=True)  # left by a crash
            _write_new(part, self._private_key.private_bytes_raw())
            try:
                path.hardlink_to(part)  # as a rename, but it never replaces
            finally:
                part.unlink()
            sync(path.parent)
        except OSError as error:
            raise IdentityError(
                f"Expected to create the key file {path.name}, got {error.strerror}. "
                "Choose a path that does not exist yet."
            ) from error

    @property
    def public_key(self) -> bytes:
        """The raw public key, 32 bytes."""
        return self._private_key.public_key().public_bytes_raw()

    def sign(self, domain: str, payload: bytes) -> Signed:
        """Sign `payload` for one use.

        Args:
            domain: use of the signature, such as "plan"; matches [a-z][a-z0-9-]{0,31}.
            payload: bytes of any length.

        Returns:
            The payload with its signature.

        Formal guarantee: the signed bytes are "arion/v1/" + domain + NUL + payload and a domain
        holds no NUL, so a signature for one domain never verifies in another.

        """
        return Signed(payload, self._private_key.sign(_signed_bytes(domain, payload)))

    def sign_envelope(self, payload_type: str, payload: bytes) -> bytes:
        """Sign a payload as a DSSE envelope carries it; the raw signature.

        What is signed begins with "DSSEv1", and a domain's bytes with "arion/v1/": neither
        signature verifies as the other.

        Source: DSSE v1.0.0, "Signature definition" (github.com/secure-systems-lab/dsse).
        """
        return self._private_key.sign(pre_authentication(payload_type, payload))


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that a DSSE signature signs (PAE)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def verify_signed(public_key: bytes, domain: str, signed: Signed) -> bytes:
    """Check a signature under a pinned key and return the payload.

    Args:
        public_key: raw Ed25519 public key, 32 bytes, from a pin and never from the message.
        domain: the use that the signature must have been made for.
        signed: what arrived.

    Returns:
        `signed.payload`.

    Raises:
        SignatureError: not signed by that key in that domain.

    Source: RFC 8032, section 5.1.7.

    """
    expected = f"Expected a {domain!r} signature by {fingerprint(public_key)}"
    if len(signed.signature) != _SIGNATURE_BYTES:
        raise SignatureError(
            f"{expected}, got {len(signed.signature)} bytes instead of {_SIGNATURE_BYTES}. "
            "Ask the sender for the message again."
        )
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(
            signed.signature, _signed_bytes(domain, signed.payload)
        )
    except InvalidSignature as error:
        raise SignatureError(
            f"{expected}, got another signer, domain or payload. Compare the pinned fingerprint "
            "with its owner, out of band."
        ) from error
    return signed.payload


def fingerprint(public_key: bytes) -> str:
    """Return the fingerprint that people compare: SHA-256, all 64 hex digits in groups of 8.

    Args:
        public_key: raw Ed25519 public key, 32 bytes.

    Returns:
        "arion:xxxxxxxx-xxxxxxxx-...", eight groups.

    Raises:
        SignatureError: another length.

    """
    if len(public_key) != _KEY_BYTES:
        raise SignatureError(
            f"Expected {_KEY_BYTES} bytes of an Ed25519 public key, got {len(public_key)}. "
            "Correct the pin."
        )
    digest = hashlib.sha256(public_key).hexdigest()
    starts = range(0, len(digest), _FINGERPRINT_GROUP)
    return "arion:" + "-".join(digest[start : start + _FINGERPRINT_GROUP] for start in starts)


def _signed_bytes(domain: str, payload: bytes) -> bytes:
    if not _DOMAIN.fullmatch(domain):
        raise SignatureError(
            f"Expected a signature domain such as 'plan', got {domain!r}. "
            "Use lower-case letters, digits and hyphens."
        )
    return b"arion/v1/" + domain.encode() + b"\0" + payload


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
