"""Who masks with whom, and who holds shares: recomputed by every member from public values.

Byte for byte in docs/secure_aggregation.md. Symbols: n members, k the mean degree, m the
committee's size, | joins parts with their lengths (`encode_parts`), H is SHA-256.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

from privacy.secagg.kdf import encode_parts

_WORD_BYTES = 8


@dataclass(frozen=True)
class Graph:
    """The graph and the committee of one attempt.

    Attributes:
        neighbours: of each member; pairs are in it both ways.
        committee: members that hold shares, sorted; a share's point is its place here, from 1.

    """

    neighbours: dict[str, frozenset[str]]
    committee: tuple[str, ...]


def attempt_seed(graph_seed: bytes, round_number: int, attempt: int) -> bytes:
    """Return H("graph" | epoch's seed | round | attempt), 32 bytes.

    Neither the run nor the plan enters: an epoch has one graph for each (round, attempt), so there
    is nothing that the coordinator could choose again until a graph pleases it.
    """
    numbers = round_number.to_bytes(8, "big"), attempt.to_bytes(8, "big")
    return hashlib.sha256(encode_parts(b"graph", graph_seed, *numbers)).digest()


@lru_cache(maxsize=8)
def draw_graph(seed: bytes, names: tuple[str, ...], degree: int, committee: int) -> Graph:
    """Draw the graph and the committee that a seed stands for.

    u and v with u < v are joined if the first 8 bytes of H("edge" | seed | u | v), big-endian, are
    below floor(2^64 k / (n - 1)); the committee are the m members with the least
    H("committee" | seed | u). With k = n - 1 or m = n there is nothing to draw.

    Args:
        seed: of `attempt_seed`.
        names: all members, sorted.
        degree: k, 1 to n - 1.
        committee: m, 1 to n.

    Returns:
        The graph.

    """
    return Graph(_neighbours(seed, names, degree), _committee(seed, names, committee))


def _neighbours(seed: bytes, names: tuple[str, ...], degree: int) -> dict[str, frozenset[str]]:
    others = len(names) - 1
    if degree == others:
        return {name: frozenset(names) - {name} for name in names}
    below = (degree << 8 * _WORD_BYTES) // others
    found: dict[str, set[str]] = {name: set() for name in names}
    start = hashlib.sha256(encode_parts(b"edge", seed))
    parts = {name: encode_parts(name.encode()) for name in names}
    for first, second in combinations(names, 2):
        drawn = start.copy()
        drawn.update(parts[first] + parts[second])
        if int.from_bytes(drawn.digest()[:_WORD_BYTES], "big") < below:
            found[first].add(second)
            found[second].add(first)
    return {name: frozenset(peers) for name, peers in found.items()}


def _committee(seed: bytes, names: tuple[str, ...], size: int) -> tuple[str, ...]:
    if size == len(names):
        return names
    ranks = {
        name: hashlib.sha256(encode_parts(b"committee", seed, name.encode())).digest()
        for name in names
    }
    return tuple(sorted(sorted(names, key=ranks.__getitem__)[:size]))
