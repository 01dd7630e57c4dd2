"""Who masks with whom, and who holds shares: recomputed by every member from public values.

Byte for byte in docs/secure_aggregation.md. Symbols: n members, k the mean degree, m the
committee's size, | joins parts with their lengths (`encode_parts`), H is SHA-256.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from privacy.secagg.kdf import encode_parts

_WORD_BYTES = 8


@dataclass(frozen=True)
class Graph:
    """The graph and the committee of one attempt.

    Attributes:
        neighbours: of each member, drawn when it is asked for; pairs are in it both ways.
        committee: members that hold shares, sorted; a share's point is its place here, from 1.

    """

    neighbours: Mapping[str, frozenset[str]]
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


def _neighbours(seed: bytes, names: tuple[str, ...], degree: int) -> Mapping[str, frozenset[str]]:
    others = len(names) - 1
    if degree == others:
        return {name: frozenset(names) - {name} for name in names}
    return _DrawnNeighbours(seed, names, (degree << 8 * _WORD_BYTES) // others)


class _DrawnNeighbours(Mapping[str, frozenset[str]]):
    """Neighbours, member by member: n - 1 hashes for one, n (n - 1) / 2 for all.

    A member that is not on the committee needs none but its own.
    """

    def __init__(self, seed: bytes, names: tuple[str, ...], below: int) -> None:
        self._parts = {name: encode_parts(name.encode()) for name in names}
        self._start = hashlib.sha256(encode_parts(b"edge", seed))
        self._below = below
        self._drawn: dict[str, frozenset[str]] = {}

    def __getitem__(self, name: str) -> frozenset[str]:
        if name not in self._drawn:
            own, drawn = self._parts[name], self._drawn
            self._drawn[name] = frozenset(
                other
                for other, part in self._parts.items()
                if other != name
                and (
                    name in drawn[other]
                    if other in drawn
                    else self._joined(own + part if name < other else part + own)
                )
            )
        return self._drawn[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def _joined(self, pair: bytes) -> bool:
        drawn = self._start.copy()
        drawn.update(pair)
        return int.from_bytes(drawn.digest()[:_WORD_BYTES], "big") < self._below


def _committee(seed: bytes, names: tuple[str, ...], size: int) -> tuple[str, ...]:
    if size == len(names):
        return names
    ranks = {
        name: hashlib.sha256(encode_parts(b"committee", seed, name.encode())).digest()
        for name in names
    }
    return tuple(sorted(sorted(names, key=ranks.__getitem__)[:size]))
