"""Words on the wire: those of a narrow ring side by side, w bits each, the lowest bit first.

Narrow words are computed with as uint16: a sum modulo 2^16 holds the sum modulo 2^w in its low w
bits, so masks and sums need not know w. Four words lie in a lane of 64 bits, 16 bits apart, and
move together in two steps, into w/4 units of 16 bits.
"""

import numpy as np
from numpy.typing import NDArray

from privacy.dp.plan import RingBits
from privacy.secagg.masks import MaskError, Words, word_type

Lanes = NDArray[np.uint64]

_PER_LANE = 4
_CHUNK = 1 << 16
_EVEN_WORDS = np.uint64(0x0000_FFFF_0000_FFFF)
_FIRST_PAIR = np.uint64(0x0000_0000_FFFF_FFFF)


def packed_bytes(length: int, ring_bits: RingBits) -> int:
    """Return the size of `length` words on the wire."""
    return -(-length * ring_bits // 8)


def reduce_words(words: Words, ring_bits: RingBits) -> None:
    """Keep the low w bits of each word, in place."""
    if ring_bits < 16:
        np.bitwise_and(words, words.dtype.type((1 << ring_bits) - 1), out=words)


def pack(words: Words, ring_bits: RingBits) -> memoryview:
    """Return the bytes that go over the wire; they take the place of narrow words in memory.

    Args:
        words: contiguous, reduced modulo 2^w, shape [d].
        ring_bits: w.

    Returns:
        `packed_bytes` bytes within the words' own memory.

    """
    packed = words.view(np.uint8)[: packed_bytes(len(words), ring_bits)]
    if ring_bits < 16:
        for start in range(0, len(words), _CHUNK):
            part = words[start : start + _CHUNK]
            lanes = np.zeros(-(-len(part) // _PER_LANE), "<u8")
            lanes.view("<u2")[: len(part)] = part
            dense = _close_up(lanes, ring_bits)
            place = packed[start * ring_bits // 8 :][: len(dense)]
            place[:] = dense[: len(place)]  # beyond the last word there are zeros only
    return packed.data


def unpack(data: bytes | memoryview, ring_bits: RingBits, length: int) -> Words:
    """Read words from their bytes; those of 16 or 32 bits without a copy, read-only.

    Args:
        data: what `pack` returned.
        ring_bits: w.
        length: d.

    Raises:
        MaskError: another number of bytes, or bits beyond the last word.

    """
    if len(data) != packed_bytes(length, ring_bits):
        raise MaskError(
            f"Expected {length} words of {ring_bits} bits in {packed_bytes(length, ring_bits)} "
            f"bytes, got {len(data)} bytes. Send the vector again."
        )
    if ring_bits >= 16:
        return np.frombuffer(data, word_type(ring_bits))
    packed = np.frombuffer(data, np.uint8)
    lanes = np.zeros(-(-length // _PER_LANE), "<u8")
    step = _CHUNK // _PER_LANE
    for start in range(0, len(lanes), step):
        part = lanes[start : start + step]
        dense = np.zeros(len(part) * ring_bits // 2, np.uint8)
        found = packed[start * ring_bits // 2 :][: len(dense)]
        dense[: len(found)] = found
        _spread(dense, part, ring_bits)
    words = lanes.view("<u2")
    if words[length:].any():
        raise MaskError("Expected zeros beyond the last word, got others. Send the vector again.")
    return words[:length]


def _close_up(lanes: Lanes, ring_bits: RingBits) -> NDArray[np.uint8]:
    """Return the words of all lanes without gaps, as bytes; overwrites the lanes."""
    odd = lanes & ~_EVEN_WORDS
    lanes &= _EVEN_WORDS
    lanes |= odd >> np.uint64(16 - ring_bits)
    second = lanes & ~_FIRST_PAIR
    lanes &= _FIRST_PAIR
    lanes |= second >> np.uint64(32 - 2 * ring_bits)
    units = lanes.view("<u2").reshape(-1, _PER_LANE)
    dense = np.empty((len(lanes), ring_bits // 4), "<u2")
    for place in range(ring_bits // 4):  # by columns: rows of a few bytes copy slowly
        dense[:, place] = units[:, place]
    return dense.reshape(-1).view(np.uint8)


def _spread(dense: NDArray[np.uint8], lanes: Lanes, ring_bits: RingBits) -> None:
    """Undo `_close_up` into lanes of zeros."""
    units = lanes.view("<u2").reshape(-1, _PER_LANE)
    columns = dense.view("<u2").reshape(-1, ring_bits // 4)
    for place in range(ring_bits // 4):
        units[:, place] = columns[:, place]
    pair = np.uint64((1 << 2 * ring_bits) - 1)
    second = lanes & ~pair
    lanes &= pair
    lanes |= second << np.uint64(32 - 2 * ring_bits)
    word = np.uint64((1 << ring_bits) - 1)
    even = word | word << np.uint64(32)
    odd = lanes & ~even
    lanes &= even
    lanes |= odd << np.uint64(16 - ring_bits)
