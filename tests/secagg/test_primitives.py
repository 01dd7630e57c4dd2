"""Shares and key derivation against references and published vectors."""

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from privacy.secagg.kdf import encode_parts, hkdf
from privacy.secagg.keys import EpochKeys, RosterError
from privacy.secagg.shamir import (
    PRIME,
    ShamirError,
    combine,
    random_secret,
    reduce_to_field,
    split,
    wrong_shares,
)


@pytest.mark.parametrize("secret", [random_secret(), bytes(32), (PRIME - 1).to_bytes(32, "big")])
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


def cases(shared_dir: Path, name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    vectors = json.loads((shared_dir / f"vectors/wycheproof/{name}_test.json").read_text())
    for group in vectors["testGroups"]:
        for case in group["tests"]:
            yield (
                group,
                {
                    key: bytes.fromhex(value)
                    if isinstance(value, str) and key not in ("comment", "result")
                    else value
                    for key, value in case.items()
                },
            )


def test_wycheproof_x25519(shared_dir: Path) -> None:
    refused = 0
    for _, case in cases(shared_dir, "x25519"):
        private = X25519PrivateKey.from_private_bytes(case["private"])
        try:
            shared = EpochKeys(private, private, bytes(32), bytes(64)).exchange(
                "mask", case["public"]
            )
        except RosterError:
            assert case["shared"] == bytes(32), case["tcId"]
            refused += 1
        else:
            assert shared == case["shared"], case["tcId"]
    assert refused > 10


def test_wycheproof_hkdf(shared_dir: Path) -> None:
    checked = 0
    for _, case in cases(shared_dir, "hkdf_sha256"):
        if case["result"] == "valid" and case["size"] >= 32:
            assert hkdf(case["ikm"], case["salt"], case["info"]) == case["okm"][:32], case["tcId"]
            checked += 1
    assert checked > 20


def test_wycheproof_aes_gcm_as_packets_use_it(shared_dir: Path) -> None:
    checked = 0
    for group, case in cases(shared_dir, "aes_gcm"):
        if (group["keySize"], group["ivSize"], group["tagSize"]) != (256, 96, 128):
            continue
        cipher, sealed = AESGCM(case["key"]), case["ct"] + case["tag"]
        if case["result"] == "valid":
            assert cipher.decrypt(case["iv"], sealed, case["aad"]) == case["msg"]
        else:
            with pytest.raises(InvalidTag):
                cipher.decrypt(case["iv"], sealed, case["aad"])
        checked += 1
    assert checked > 20
