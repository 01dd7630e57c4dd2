"""Masks: an AES-256-CTR keystream added to a vector in place, chunk by chunk.

A mask is the keystream of its key from counter 0, read as little-endian words of Z/2^16 or Z/2^32;
narrower rings keep the low bits of the former (see `privacy.secagg.packing`).
Expanding and adding in chunks that stay in the processor's cache saves two passes over memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from privacy.dp.plan import RingBits

Words: TypeAlias = NDArray[np.uint16] | NDArray[np.uint32]

CHUNK_BYTES = 256 << 10
_BLOCK_BYTES = 16
COUNT_BYTES = _BLOCK_BYTES
_COUNT_BLOCK = 1 << 64
"""Block of the keystream that masks a count: beyond that of any vector."""
_LINE_BYTES = 64
_ZEROS = memoryview(bytes(CHUNK_BYTES))


class MaskError(ValueError):
    """A vector or a key that cannot be masked."""


@dataclass(frozen=True)
class Mask:
    """One mask: a key and whether its keystream is added or subtracted.

    Attributes:
        key: AES-256 key, 32 bytes, used for this one keystream only.
        sign: 1 adds, -1 subtracts.

    """

    key: bytes = field(repr=False)
    sign: Literal[1, -1]


def count_block(data: bytes, ring_bits: RingBits) -> Words:
    """Read the words of a block of counts; read-only."""
    return np.frombuffer(data, word_type(ring_bits))


def masked_one(masks: Sequence[Mask], ring_bits: RingBits) -> bytes:
    """Return a count of one in every word of a block, masked; 16 bytes.

    Sums of such blocks open to the number of summands if, and only if but for 2^-128, the same
    masks cancel that cancel in the vectors.
    """
    dtype = word_type(ring_bits)
    block: Words = np.ones(COUNT_BYTES // dtype.itemsize, dtype)
    apply_masks(block, masks, first_block=_COUNT_BLOCK)
    return block.tobytes()


def opened_count(total: Words, masks: Sequence[Mask]) -> int | None:
    """Return the number of blocks in a sum of `masked_one`, or None where masks remain.

    Args:
        total: sum of the blocks modulo the ring; not changed.
        masks: those that did not cancel, inverted.

    """
    block = total.copy()
    apply_masks(block, masks, first_block=_COUNT_BLOCK)
    return int(block[0]) if (block == block[0]).all() else None


def word_type(ring_bits: RingBits) -> "np.dtype[Any]":
    """Return the little-endian dtype that a ring's words are computed with."""
    return np.dtype("<u4" if ring_bits == 32 else "<u2")


def apply_masks(
    words: Words, masks: Sequence[Mask], *, threads: int = 1, first_block: int = 0
) -> None:
    """Add or subtract masks in place, modulo the ring; allocates a chunk, never a vector.

    Args:
        words: contiguous little-endian uint16 or uint32, shape [d]; changed in place.
        masks: any number.
        threads: workers on disjoint slices; the cipher releases the interpreter's lock.
        first_block: block of the keystream that the words begin with; below 2^128.

    Raises:
        MaskError: another dtype or layout, read-only words, or a key of another length.

    Formal guarantee: AES-256-CTR as a pseudorandom generator: to whoever lacks the key of one
    added mask, the result is indistinguishable from uniform words.

    Source: NIST SP 800-38A, section 6.5; Bonawitz et al. 2017 (doi 10.1145/3133956.3133982).

    """
    _check(words, masks)
    if threads == 1 or words.nbytes <= CHUNK_BYTES:
        _apply_slice(words, masks, first_block)
        return
    step = CHUNK_BYTES // words.itemsize
    share = -(-len(words) // (threads * step)) * step
    blocks = share * words.itemsize // _BLOCK_BYTES
    slices = [words[at : at + share] for at in range(0, len(words), share)]
    with ThreadPoolExecutor(threads) as pool:
        firsts = range(first_block, first_block + blocks * len(slices), blocks)
        list(pool.map(lambda part, first: _apply_slice(part, masks, first), slices, firsts))


def _apply_slice(words: Words, masks: Iterable[Mask], first_block: int) -> None:
    """Mask a slice that begins with a block of the keystream."""
    streams = [
        (
            _keystream(mask.key, first_block).update_into,
            np.add if mask.sign == 1 else np.subtract,
        )
        for mask in masks
    ]
    # OpenSSL asks for one block of room beyond the output.
    buffer = _on_a_line(CHUNK_BYTES + _BLOCK_BYTES)
    expanded = buffer[:CHUNK_BYTES].view(words.dtype)
    for part in _chunks(words):
        zeros, mask_words = _ZEROS[: part.nbytes], expanded[: len(part)]
        for expand_into, combine in streams:
            expand_into(zeros, buffer.data)
            combine(part, mask_words, part)


def _chunks(words: Words) -> Iterator[Words]:
    """Cut a vector where cache lines begin: adding across them takes a third longer.

    The first chunk is short, and a whole number of the keystream's blocks, as memory from numpy
    begins on one; elsewhere chunks lie as they may.
    """
    head_bytes = -words.ctypes.data % _LINE_BYTES
    head = head_bytes // words.itemsize if head_bytes % _BLOCK_BYTES == 0 else 0
    if head:
        yield words[:head]
    step = CHUNK_BYTES // words.itemsize
    for start in range(head, len(words), step):
        yield words[start : start + step]


def _on_a_line(count: int) -> NDArray[np.uint8]:
    """Allocate bytes that begin where a cache line does."""
    buffer = np.empty(count + _LINE_BYTES, np.uint8)
    skipped = -buffer.ctypes.data % _LINE_BYTES
    return buffer[skipped : skipped + count]


def _keystream(key: bytes, first_block: int) -> CipherContext:
    counter = first_block.to_bytes(_BLOCK_BYTES, "big")
    return Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()


def _check(words: Words, masks: Iterable[Mask]) -> None:
    if words.dtype not in (word_type(16), word_type(32)) or words.ndim != 1:
        raise MaskError(
            f"Expected a flat vector of little-endian uint16 or uint32, got {words.dtype} with "
            f"{words.ndim} dimensions. Encode it with privacy.dp.lattice.encode."
        )
    if not (words.flags.c_contiguous and words.flags.writeable):
        raise MaskError("Expected contiguous writeable words, got a view or read-only. Copy them.")
    if any(len(mask.key) != 32 or mask.sign not in (1, -1) for mask in masks):
        raise MaskError("Expected keys of 32 bytes and signs of 1 or -1, got others.")
