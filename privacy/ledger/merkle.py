"""The Merkle tree of RFC 6962: roots, proofs that an entry is in, proofs that nothing was changed.

Whoever holds a signed root of `old_size` entries can be shown, with about log2(size) hashes, that
the log of today begins with exactly those entries.
"""

import hashlib
from collections.abc import Sequence

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()


class ProofError(ValueError):
    """A Merkle proof that does not prove what it should."""


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of one entry. Source: RFC 6962, section 2.1."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node; its prefix keeps it apart from a leaf (RFC 6962, 2.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class MerkleTree:
    """An append-only tree kept in memory, 64 bytes an entry; an append hashes twice on average.

    `_levels[k][i]` is the hash of the i-th complete subtree of 2^k leaves.
    """

    def __init__(self) -> None:
        self._levels: list[list[bytes]] = [[]]

    @property
    def size(self) -> int:
        """Number of leaves."""
        return len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash (of `leaf_hash`) and complete the subtrees that it fills."""
        self._levels[0].append(leaf)
        level = 0
        while len(self._levels[level]) % 2 == 0:
            if len(self._levels) == level + 1:
                self._levels.append([])
            left, right = self._levels[level][-2:]
            level += 1
            self._levels[level].append(node_hash(left, right))

    def root(self, size: int | None = None) -> bytes:
        """Return the root of the first `size` leaves (all by default)."""
        return self._subtree(0, self._checked(self.size if size is None else size))

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """Return the audit path of leaf `index` in the tree of `size`. Source: RFC 6962, 2.1.1."""
        end = self._checked(self.size if size is None else size)
        if not 0 <= index < end:
            raise ProofError(f"Expected the index of one of {end} entries, got {index}.")
        path: list[bytes] = []
        start = 0
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                path.append(self._subtree(middle, end))
                end = middle
            else:
                path.append(self._subtree(start, middle))
                start = middle
        return path[::-1]

    def consistency_proof(self, old_size: int, size: int | None = None) -> list[bytes]:
        """Return the proof that the first `old_size` leaves are those of then (RFC 6962, 2.1.2)."""
        end = self._checked(self.size if size is None else size)
        if not 0 < old_size <= end:
            raise ProofError(f"Expected an old size from 1 to {end}, got {old_size}.")
        path: list[bytes] = []
        start, whole = 0, True
        while old_size != end:
            middle = start + _split(end - start)
            if old_size <= middle:
                path.append(self._subtree(middle, end))
                end = middle
            else:
                path.append(self._subtree(start, middle))
                start, whole = middle, False
        return path[::-1] if whole else [self._subtree(start, end), *path[::-1]]

    def _subtree(self, start: int, end: int) -> bytes:
        """Return MTH(D[start:end]); complete subtrees are looked up, not hashed."""
        width = end - start
        if width == 0:
            return EMPTY_ROOT
        if width & (width - 1) == 0:
            return self._levels[width.bit_length() - 1][start // width]
        middle = start + _split(width)
        return node_hash(self._subtree(start, middle), self._subtree(middle, end))

    def _checked(self, size: int) -> int:
        if not 0 <= size <= self.size:
            raise ProofError(f"Expected a size from 0 to {self.size}, got {size}.")
        return size


def verify_inclusion(
    index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes
) -> None:
    """Check that `leaf` is entry `index` of the tree of `size` with this `root`.

    Args:
        index: position, 0-based.
        size: number of entries under `root`.
        leaf: hash of the entry (`leaf_hash`).
        proof: audit path, from the leaf up.
        root: root hash, 32 bytes, from a signed tree head.

    Raises:
        ProofError: the proof does not show it.

    Source: RFC 6962, section 2.1.1; RFC 9162, section 2.1.3.2.

    """
    if not 0 <= index < size:
        raise ProofError(f"Expected an index below the tree's size, got {index} of {size}.")
    inner, border = _decompose(index, size)
    _check_hashes(proof, inner + border)
    _check_hashes((leaf, root), 2)
    hashed = _chain_inner(leaf, proof[:inner], index)
    if _chain_right(hashed, proof[inner:]) != root:
        raise ProofError(f"Expected entry {index} under the root of {size} entries, got another.")


def verify_consistency(
    old_size: int, size: int, proof: Sequence[bytes], old_root: bytes, root: bytes
) -> None:
    """Check that the tree of `size` begins with the entries that `old_root` stood for.

    Args:
        old_size: entries under `old_root`, at least 1: an empty tree proves nothing.
        size: entries under `root`, at least `old_size`.
        proof: consistency proof, empty where the sizes are equal.
        old_root: root hash held from before, 32 bytes.
        root: root hash offered now, 32 bytes.

    Raises:
        ProofError: entries were changed, dropped or reordered, or the proof is malformed.

    Source: RFC 6962, section 2.1.2; RFC 9162, section 2.1.4.2.

    """
    if not 0 < old_size <= size:
        raise ProofError(f"Expected 0 < old size <= new size, got {old_size} and {size}.")
    if old_size == size:
        _check_hashes(proof, 0)
        old, new = old_root, old_root
    else:
        old, new = _roots_of_both(old_size, size, proof, old_root)
    if old != old_root or new != root:
        raise ProofError(
            f"Expected the tree of {size} entries to begin with the {old_size} known ones, "
            "got a different history."
        )


def _roots_of_both(
    old_size: int, size: int, proof: Sequence[bytes], old_root: bytes
) -> tuple[bytes, bytes]:
    """Return the roots, old and new, that the proof leads to."""
    shift = (old_size & -old_size).bit_length() - 1
    complete = old_size == 1 << shift
    inner, border = _decompose(old_size - 1, size)
    inner -= shift
    _check_hashes(proof, inner + border + (0 if complete else 1))
    # A complete old tree is a subtree of the new one, so that its root need not be sent.
    seed, rest = (old_root, proof) if complete else (proof[0], proof[1:])
    mask = (old_size - 1) >> shift
    old = _chain_right(_chain_inner_right(seed, rest[:inner], mask), rest[inner:])
    return old, _chain_right(_chain_inner(seed, rest[:inner], mask), rest[inner:])


def _split(width: int) -> int:
    """Return the largest power of two below `width`."""
    return 1 << ((width - 1).bit_length() - 1)


def _decompose(index: int, size: int) -> tuple[int, int]:
    """Split a path's length: below and above the point where it meets the tree's right border."""
    inner = (index ^ (size - 1)).bit_length()
    return inner, (index >> inner).bit_count()


def _check_hashes(proof: Sequence[bytes], expected: int) -> None:
    if len(proof) != expected or any(len(item) != HASH_BYTES for item in proof):
        raise ProofError(
            f"Expected {expected} hashes of {HASH_BYTES} bytes, got {len(proof)} items."
        )


def _chain_inner(seed: bytes, proof: Sequence[bytes], index: int) -> bytes:
    for level, sibling in enumerate(proof):
        on_right = (index >> level) & 1
        seed = node_hash(sibling, seed) if on_right else node_hash(seed, sibling)
    return seed


def _chain_inner_right(seed: bytes, proof: Sequence[bytes], index: int) -> bytes:
    """Hash only the siblings on the left: those that the old tree already had."""
    for level, sibling in enumerate(proof):
        if (index >> level) & 1:
            seed = node_hash(sibling, seed)
    return seed


def _chain_right(seed: bytes, proof: Sequence[bytes]) -> bytes:
    for sibling in proof:
        seed = node_hash(sibling, seed)
    return seed
