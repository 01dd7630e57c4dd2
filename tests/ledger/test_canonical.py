"""RFC 8785: the published vectors, and refusal of every other spelling."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.canonical import CanonicalError, canonical_bytes, parse_canonical, sha256_hex

NAMES = ("arrays", "french", "structures", "unicode", "values", "weird")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=10,
)


@pytest.mark.parametrize("name", NAMES)
def test_published_vectors(shared_dir: Path, name: str) -> None:
    vectors = shared_dir / "vectors" / "jcs_rfc8785"
    value = json.loads((vectors / "input" / f"{name}.json").read_bytes())
    expected = (vectors / "output" / f"{name}.json").read_bytes()
    assert canonical_bytes(value) == expected
    assert expected == bytes.fromhex((vectors / "outhex" / f"{name}.txt").read_text())
    assert canonical_bytes(parse_canonical(expected)) == expected


@given(JSON)
def test_every_value_survives_a_round_trip(value: object) -> None:
    written = canonical_bytes(value)  # type: ignore[arg-type]
    assert canonical_bytes(parse_canonical(written)) == written
    assert parse_canonical(written) == value


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), 2**53, b"bytes", {1: 2}, "\ud800", {"\ud800": 1}, {1, 2}],
)
def test_values_without_a_canonical_form_are_refused(value: object) -> None:
    with pytest.raises(CanonicalError, match="canonical form"):
        canonical_bytes(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data",
    [b'{"b":1,"a":2}', b'{"a": 1}', b"[1,2]\n", b"1.0", b"-0", b"1e2", b'"\\u0041"', b"[01]"],
)
def test_other_spellings_are_refused(data: bytes) -> None:
    with pytest.raises(CanonicalError, match="canonical JSON"):
        parse_canonical(data)


def test_a_duplicate_key_is_refused_by_name() -> None:
    with pytest.raises(CanonicalError, match="got 'budget' twice"):
        parse_canonical(b'{"budget":1,"budget":2}')


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"NaN", b"Infinity", b"[" * 100_000])
def test_bytes_that_are_not_json_are_refused(data: bytes) -> None:
    with pytest.raises(CanonicalError):
        parse_canonical(data)


def test_digest_is_that_of_the_standard() -> None:
    assert sha256_hex(b"abc").startswith("ba7816bf8f01cfea")
