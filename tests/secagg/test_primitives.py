"""Shares, and how parts are joined; published vectors are in test_known_answers.py."""

from itertools import combinations

import pytest

from privacy.secagg.kdf import encode_parts
from privacy.secagg.shamir import (
    PRIME,
    ShamirError,
    combine,
    random_secret,
    reduce_to_field,
    split,
    suspect_points,
    wrong_shares,
)


@pytest.mark.parametrize(
    "secret",
    [random_secret(), bytes(32), (PRIME - 1).to_bytes(32, "big")],
    ids=["drawn", "least", "largest"],
)
def test_any_quorum_recovers_the_secret_and_fewer_do_not(secret: bytes) -> None:
    shares = dict(enumerate(split(secret, 3, 5), start=1))
    for points in combinations(shares, 3):
        assert combine({x: shares[x] for x in points}, 3) == secret
    assert combine({x: shares[x] for x in (1, 2)}, 2) != secret
    with pytest.raises(ShamirError, match="3 shares"):
        combine({x: shares[x] for x in (1, 2)}, 3)


def test_a_share_below_the_threshold_fits_every_secret() -> None:
    share = split(random_secret(), 2, 3)[0]
    for candidate in (bytes(32), random_secret()):
        slope = int.from_bytes(share, "big") - int.from_bytes(candidate, "big")
        second = ((int.from_bytes(candidate, "big") + 2 * slope) % PRIME).to_bytes(32, "big")
        assert combine({1: share, 2: second}, 2) == candidate


def test_shares_at_the_largest_cohort() -> None:
    secret = random_secret()
    shares = dict(enumerate(split(secret, 26, 50), start=1))
    assert combine(dict(list(shares.items())[24:]), 26) == secret
    assert wrong_shares(shares, list(shares)[:26], 26) == []
    wrong = {**shares, 40: bytes(32), 50: b"\xff" * 32}
    assert wrong_shares(wrong, list(shares)[:26], 26) == [40, 50]


@pytest.mark.parametrize("wrong_at", [(), (9,), (6, 8)])
def test_wrong_shares_among_many_secrets(wrong_at: tuple[int, ...]) -> None:
    """One of 20 secrets is off at these points, as checking each secret by itself says too."""
    many = [dict(enumerate(split(random_secret(), 5, 9), start=1)) for _ in range(20)]
    for x in wrong_at:
        value = int.from_bytes(many[7][x], "big")
        many[7][x] = ((value + 1) % PRIME).to_bytes(32, "big")
    trusted = [1, 2, 3, 4, 5]
    assert suspect_points(many, trusted, 5) == list(wrong_at)
    assert sorted({x for each in many for x in wrong_shares(each, trusted, 5)}) == list(wrong_at)


def test_wrong_shares_that_cancel_in_a_plain_sum_are_found() -> None:
    many = [dict(enumerate(split(random_secret(), 2, 3), start=1)) for _ in range(2)]
    for shares, change in zip(many, (1, -1), strict=True):
        shares[3] = ((int.from_bytes(shares[3], "big") + change) % PRIME).to_bytes(32, "big")
    assert suspect_points(many, [1, 2], 2) == [3]


def test_a_share_outside_the_field_is_wrong_though_it_fits() -> None:
    """Its residue is right: only the number itself is not one of the field."""
    many = [{x: bytes(32) for x in (1, 2, 3)}]
    many[0][3] = PRIME.to_bytes(32, "big")
    assert suspect_points(many, [1, 2], 2) == [3]


@pytest.mark.parametrize(("threshold", "count"), [(0, 3), (4, 3), (1, 65_536)])
def test_thresholds_out_of_range(threshold: int, count: int) -> None:
    with pytest.raises(ShamirError, match="threshold"):
        split(bytes(32), threshold, count)


def test_secrets_and_points_outside_the_field() -> None:
    for secret in (PRIME.to_bytes(32, "big"), bytes(31)):
        with pytest.raises(ShamirError, match="field element"):
            split(secret, 2, 3)
    with pytest.raises(ShamirError, match="points"):
        combine({0: bytes(32), 1: bytes(32)}, 2)
    assert reduce_to_field(PRIME.to_bytes(32, "big")) == bytes(32)


def test_parts_are_joined_injectively() -> None:
    lists = [(b"ab", b"c"), (b"a", b"bc"), (b"abc",), (b"ab", b"c", b""), ()]
    assert len({encode_parts(*parts) for parts in lists}) == len(lists)
