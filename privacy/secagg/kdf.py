"""Key derivation: HKDF-SHA256, with every use named."""

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

KEY_BYTES = 32


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA256, extract and expand, to 32 bytes (RFC 5869)."""
    return HKDF(SHA256(), KEY_BYTES, salt, info).derive(secret)


def expand(key: bytes, *parts: bytes) -> bytes:
    """HKDF-Expand-SHA256 of a uniform key to 32 bytes; `parts` name the use (RFC 5869, 2.3)."""
    return HKDFExpand(SHA256(), KEY_BYTES, encode_parts(*parts)).derive(key)


def encode_parts(*parts: bytes) -> bytes:
    """Join byte strings so that different lists give different bytes: each with its length."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
