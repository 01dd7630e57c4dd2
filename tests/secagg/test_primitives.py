"""Masks, shares and key derivation against references and published vectors."""

import json
import os
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from privacy.secagg.keys import EpochKeys, RosterError, encode_parts, hkdf
from privacy.secagg.masks import CHUNK_BYTES, Mask, MaskError, apply_masks
from privacy.secagg.shamir import (
    PRIME,
    ShamirError,
    combine,
    random_secret,
    reduce_to_field,
    split,
    wrong_shares,
)


def reference_mask(key: bytes, count: int, dtype: Any) -> Any:
    cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(cipher.update(bytes(count * dtype.itemsize)), dtype)


@pytest.mark.parametrize("dtype", [np.dtype("<u2"), np.dtype("<u4")])
@pytest.mark.parametrize("count", [0, 1, 7, CHUNK_BYTES // 4, 65_537, 300_001])
@pytest.mark.parametrize("threads", [1, 3])
def test_masks_equal_a_plain_reference(dtype: Any, count: int, threads: int) -> None:
    words = np.frombuffer(os.urandom(count * dtype.itemsize), dtype).copy()
    masks = [Mask(bytes([place]) * 32, sign) for place, sign in enumerate((1, -1, 1))]
    expected = words.copy()
    for mask in masks:
        keystream = reference_mask(mask.key, count, dtype)
        expected = expected + keystream if mask.sign == 1 else expected - keystream
    apply_masks(words, masks, threads=threads)
    np.testing.assert_array_equal(words, expected)


def test_opposite_masks_cancel_in_place() -> None:
    words = np.arange(100_003, dtype="<u4")
    address, key = words.ctypes.data, os.urandom(32)
    apply_masks(words, [Mask(key, 1)])
    assert not np.array_equal(words, np.arange(100_003))
    apply_masks(words, [Mask(key, -1)], threads=2)
    np.testing.assert_array_equal(words, np.arange(100_003))
    assert words.ctypes.data == address


@pytest.mark.parametrize(
    "words",
    [
        np.zeros(4, "<u8"),
        np.zeros(4, ">u2"),
        np.zeros(4, "<f4"),
        np.zeros((2, 2), "<u2"),
        np.zeros(8, "<u2")[::2],
        np.frombuffer(bytes(8), "<u2"),
    ],
)
def test_vectors_that_cannot_be_masked(words: Any) -> None:
    with pytest.raises(MaskError, match="Expected"):
        apply_masks(words, [Mask(bytes(32), 1)])


@pytest.mark.parametrize("mask", [Mask(bytes(16), 1), Mask(bytes(32), 2)])  # type: ignore[arg-type]
def test_masks_with_another_key_length_or_sign(mask: Mask) -> None:
    words = np.zeros(4, "<u2")
    with pytest.raises(MaskError, match="keys of 32 bytes"):
        apply_masks(words, [mask])


def test_a_masks_key_is_not_shown() -> None:
    assert "key" not in repr(Mask(bytes(32), 1))


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
            shared = EpochKeys(private, private).exchange("mask", case["public"])
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
