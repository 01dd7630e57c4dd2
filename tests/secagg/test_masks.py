"""Masks against plain AES: known answers, chunk borders, threads, and offsets past 2^31 bytes."""

import os
from typing import Any, Literal

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from privacy.secagg import masks as masks_module
from privacy.secagg.masks import (
    CHUNK_BYTES,
    Mask,
    MaskError,
    apply_masks,
    count_block,
    masked_one,
    opened_count,
)

KEY = bytes(range(32))
WIDTHS = [np.dtype("<u2"), np.dtype("<u4")]


def keystream(key: bytes, first_block: int, blocks: int) -> bytes:
    """AES-256 of consecutive counters, by the block cipher alone."""
    counters = b"".join(
        place.to_bytes(16, "big") for place in range(first_block, first_block + blocks)
    )
    return Cipher(algorithms.AES256(key), modes.ECB()).encryptor().update(counters)


def reference(words: Any, masks: list[Mask], first_byte: int = 0) -> Any:
    expected = words.copy()
    for mask in masks:
        raw = keystream(mask.key, first_byte // 16, -(-words.nbytes // 16))[: words.nbytes]
        stream = np.frombuffer(raw, words.dtype)
        expected = expected + stream if mask.sign == 1 else expected - stream
    return expected


def random_words(count: int, dtype: Any) -> Any:
    return np.frombuffer(os.urandom(count * dtype.itemsize), dtype).copy()


def test_known_answers_of_the_cipher() -> None:
    """Source: NIST SP 800-38A, F.5.5, CTR-AES256.Encrypt."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    first = int("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", 16)
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    sealed = bytes.fromhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    found = masks_module._keystream(key, first).update(plain)
    assert found == sealed
    assert bytes(np.frombuffer(plain, "u1") ^ np.frombuffer(keystream(key, first, 4), "u1")) == (
        sealed
    )


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("count", [0, 1, 7, CHUNK_BYTES // 4, CHUNK_BYTES + 25, 300_001])
@pytest.mark.parametrize("threads", [1, 3])
def test_masks_equal_the_block_cipher(dtype: Any, count: int, threads: int) -> None:
    words = random_words(count, dtype)
    masks = [Mask(bytes([place]) * 32, sign) for place, sign in enumerate((1, -1, 1))]
    expected = reference(words, masks)
    apply_masks(words, masks, threads=threads)
    np.testing.assert_array_equal(words, expected)


@pytest.mark.parametrize("skipped", [1, 3, 4, 8, 12, 24, 31])
def test_wherever_the_vector_begins_in_memory(skipped: int) -> None:
    words = random_words(CHUNK_BYTES + 100, np.dtype("<u2"))[skipped:]
    expected = reference(words, [Mask(KEY, -1)])
    apply_masks(words, [Mask(KEY, -1)], threads=2)
    np.testing.assert_array_equal(words, expected)


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("first_byte", [2**31 - 64, 2**32, 2**36 - 32, 2**40 + 16])
def test_slices_far_into_a_vector(dtype: Any, first_byte: int) -> None:
    words = random_words(1000, dtype)
    expected = reference(words, [Mask(KEY, 1)], first_byte)
    masks_module.apply_masks(words, [Mask(KEY, 1)], first_block=first_byte // 16)
    np.testing.assert_array_equal(words, expected)


@pytest.mark.slow
def test_a_vector_of_more_than_two_gibibytes() -> None:
    words = np.zeros(2**30 + 1013, "<u2")
    apply_masks(words, [Mask(KEY, 1), Mask(bytes(32), -1)], threads=2)
    for first in (0, 2**29, 2**30 - 512, 2**30 + 504):
        part = words[first : first + 1000]
        masks = [Mask(KEY, 1), Mask(bytes(32), -1)]
        np.testing.assert_array_equal(part, reference(np.zeros_like(part), masks, 2 * first))


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


@pytest.mark.parametrize("ring_bits", [16, 32])
def test_counts_open_where_all_masks_cancel_and_not_otherwise(ring_bits: Literal[16, 32]) -> None:
    keys = [os.urandom(32) for _ in range(3)]
    blocks = [
        masked_one([Mask(keys[0], 1), Mask(keys[1], 1)], ring_bits),
        masked_one([Mask(keys[0], -1), Mask(keys[2], 1)], ring_bits),
    ]
    total = count_block(blocks[0], ring_bits) + count_block(blocks[1], ring_bits)
    assert opened_count(total, [Mask(keys[1], -1), Mask(keys[2], -1)]) == 2
    assert opened_count(total, [Mask(keys[1], -1)]) is None
    assert opened_count(total, [Mask(keys[1], -1), Mask(keys[2], 1)]) is None


def test_the_block_of_a_count_masks_no_vector() -> None:
    key, words = os.urandom(32), random_words(64, np.dtype("<u2"))
    masked, block = words.copy(), np.zeros(8, "<u2")
    apply_masks(masked, [Mask(key, 1)])
    apply_masks(block, [Mask(key, 1)], first_block=1 << 64)
    assert block.tobytes() == keystream(key, 1 << 64, 1)
    assert count_block(masked_one([Mask(key, 1)], 16), 16).tolist() == (block + 1).tolist()
    assert block.tobytes() not in (masked - words).tobytes()
