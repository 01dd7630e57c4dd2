"""Bytes with a signature: the one type that identities sign and that messages carry."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Signed:
    """A payload and the signature over it.

    Attributes:
        payload: the exact bytes that were signed, without the domain.
        signature: Ed25519 signature, 64 bytes.

    """

    payload: bytes
    signature: bytes
