"""One spelling for every signed or hashed object: RFC 8785 canonical JSON (JCS)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import rfc8785
from pydantic import JsonValue

__all__ = [
    "CanonicalError",
    "JsonLike",
    "JsonValue",
    "canonical_bytes",
    "parse_canonical",
    "sha256_hex",
]

# What `canonical_bytes` takes: `JsonValue`, and read-only spellings of it (tuples, dict[str, int]).
JsonLike: TypeAlias = (
    bool | int | float | str | Sequence["JsonLike"] | Mapping[str, "JsonLike"] | None
)
# An IEEE double carries every integer up to here (RFC 8785, section 3.2.2.3; RFC 7493).
_MAX_INTEGER = 2**53 - 1


class CanonicalError(ValueError):
    """An object without a canonical form, or bytes that are not one."""


def canonical_bytes(obj: JsonLike) -> bytes:
    """Return the canonical JSON of `obj`: the bytes that are hashed and signed.

    Args:
        obj: None, bool, int within +-(2^53 - 1), finite float, str, list, tuple, or dict with str
            keys. Bytes are written as hex strings by the caller. A float that is a whole number
            is spelled as that integer, and -0.0 as 0.

    Returns:
        UTF-8 bytes; equal objects give equal bytes.

    Raises:
        CanonicalError: NaN, an infinity, a larger integer, a lone surrogate or another type.

    Source: RFC 8785.

    """
    try:
        return rfc8785.dumps(obj)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise CanonicalError(
            f"Expected JSON numbers, strings, lists and objects with a canonical form, got: "
            f"{error}. Write large integers and bytes as hex strings, and leave NaN out."
        ) from error


def parse_canonical(data: bytes) -> JsonValue:
    """Read canonical JSON, and refuse every other spelling of the same value.

    Args:
        data: the bytes that `canonical_bytes` returned.

    Returns:
        The value; a whole float comes back as an int, as JSON does not tell them apart.

    Raises:
        CanonicalError: not JSON, a duplicate key, NaN, or not the canonical spelling.

    Source: RFC 8785; RFC 7493 (I-JSON) for duplicate keys.

    """
    try:
        value: JsonValue = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_int=_parse_integer,
        )
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CanonicalError(
            f"Expected canonical JSON (RFC 8785), got {len(data)} bytes that are not JSON: "
            f"{type(error).__name__}. Use the file as it was written."
        ) from error
    if canonical_bytes(value) != data:
        raise CanonicalError(
            "Expected canonical JSON (RFC 8785), got another spelling of it (spaces, order of "
            "keys, number format). Use the file as it was written."
        )
    return value


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 digest of `data` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def _without_duplicates(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    """Build an object, refusing a key that occurs twice: readers disagree on which one counts."""
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise CanonicalError(f"Expected each key once in a JSON object, got {twice!r} twice.")
    return result


def _parse_integer(text: str) -> int | float:
    """Read an integer as JSON means it: beyond 2^53 it is a double."""
    value = float(text)
    return int(text) if abs(value) <= _MAX_INTEGER else value
