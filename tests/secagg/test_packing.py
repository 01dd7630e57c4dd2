"""Words of a narrow ring on the wire, against one large integer."""

from typing import Any

import numpy as np
import pytest

from privacy.secagg.masks import MaskError
from privacy.secagg.packing import pack, packed_bytes, reduce_words, unpack


def draw(length: int, ring_bits: int) -> Any:
    words = np.random.default_rng(length).integers(0, 2**ring_bits, length)
    return words.astype("<u4" if ring_bits == 32 else "<u2")


@pytest.mark.parametrize("ring_bits", [8, 12, 16, 32])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 1001])
def test_bytes_are_those_of_one_large_integer(length: int, ring_bits: Any) -> None:
    words = draw(length, ring_bits)
    whole = sum(int(word) << (ring_bits * place) for place, word in enumerate(words))
    expected = whole.to_bytes(-(-length * ring_bits // 8), "little")
    assert packed_bytes(length, ring_bits) == len(expected)
    assert bytes(pack(words.copy(), ring_bits)) == expected
    np.testing.assert_array_equal(unpack(expected, ring_bits, length), words)


@pytest.mark.parametrize("ring_bits", [8, 12])
@pytest.mark.parametrize("length", [65_535, 65_536, 65_537, 200_003])
def test_across_chunks(length: int, ring_bits: Any) -> None:
    words = draw(length, ring_bits)
    packed = pack(words.copy(), ring_bits)
    assert packed.nbytes == -(-length * ring_bits // 8)
    np.testing.assert_array_equal(unpack(packed, ring_bits, length), words)


@pytest.mark.parametrize("ring_bits", [8, 12, 16, 32])
def test_wrong_bytes_are_refused(ring_bits: Any) -> None:
    packed = bytes(pack(draw(101, ring_bits), ring_bits))
    for data in (packed[:-1], packed + b"\0", b""):
        with pytest.raises(MaskError, match="101 words"):
            unpack(data, ring_bits, 101)
    if ring_bits == 12:
        with pytest.raises(MaskError, match="beyond the last word"):
            unpack(packed[:-1] + bytes([packed[-1] | 0x80]), ring_bits, 101)


def test_reduction_keeps_the_low_bits_in_place() -> None:
    words = np.arange(2**16, dtype="<u2")
    reduce_words(words, 12)
    np.testing.assert_array_equal(words, np.arange(2**16) % 2**12)
    wide = np.arange(5, dtype="<u4") * 2**29
    reduce_words(wide, 32)
    assert wide.tolist() == [place * 2**29 for place in range(5)]
