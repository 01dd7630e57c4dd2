"""Who masks with whom, and who holds shares: recomputed by every member from public values.

Byte for byte in docs/secure_aggregation.md. Symbols: n members of a group, k the mean degree, m the
committee's size, | joins parts with their lengths (`encode_parts`), H is SHA-256.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from privacy.secagg.kdf import encode_parts

_WORD_BYTES = 8


@dataclass(frozen=True)
class Group:
    """Members whose vectors are added up with one another and with nobody else's.

    Attributes:
        members: sorted.
        committee: those of them that hold shares, sorted; a share's point is its place, from 1.
        neighbours: of each member, drawn when it is asked for; pairs are in it both ways.

    """

    members: tuple[str, ...]
    committee: tuple[str, ...]
    neighbours: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Shape:
    """What a plan fixes of a graph; the rest is drawn.

    Attributes:
        groups: g, a divisor of the number of members.
        degree: k, 1 to n - 1.
        committee: m, 1 to n, of each group.

    """

    groups: int
    degree: int
    committee: int


def attempt_seed(graph_seed: bytes, round_number: int, attempt: int) -> bytes:
    """Return H("graph" | epoch's seed | round | attempt), 32 bytes.

    Neither the run nor the plan enters: an epoch has one graph for each (round, attempt), so there
    is nothing that the coordinator could choose again until a graph pleases it.
    """
    numbers = round_number.to_bytes(8, "big"), attempt.to_bytes(8, "big")
    return hashlib.sha256(encode_parts(b"graph", graph_seed, *numbers)).digest()


@lru_cache(maxsize=8)
def draw_groups(seed: bytes, names: tuple[str, ...], shape: Shape) -> tuple[Group, ...]:
    """Draw the groups that a seed stands for, with their graphs and committees.

    Members are ranked by H("group" | seed | u); rank r is in group r mod g. Within a group, u and v
    with u < v are joined if the first 8 bytes of H("edge" | seed | u | v), big-endian, are below
    floor(2^64 k / (n - 1)); its committee are the m members with the least
    H("committee" | seed | u). With g = 1, k = n - 1 or m = n there is nothing to draw.

    Args:
        seed: of `attempt_seed`.
        names: all members, sorted.
        shape: g, k and m.

    Returns:
        The groups, all of one size.

    """
    assert len(names) % shape.groups == 0, "plans with groups of several sizes are refused"
    ranked = names if shape.groups == 1 else _ranked(b"group", seed, names)
    return tuple(
        _draw_group(seed, tuple(sorted(ranked[first :: shape.groups])), shape)
        for first in range(shape.groups)
    )


def _draw_group(seed: bytes, members: tuple[str, ...], shape: Shape) -> Group:
    committee = members
    if shape.committee < len(members):
        committee = tuple(sorted(_ranked(b"committee", seed, members)[: shape.committee]))
    return Group(members, committee, _neighbours(seed, members, shape.degree))


def _ranked(purpose: bytes, seed: bytes, names: tuple[str, ...]) -> tuple[str, ...]:
    ranks = {
        name: hashlib.sha256(encode_parts(purpose, seed, name.encode())).digest() for name in names
    }
    return tuple(sorted(names, key=ranks.__getitem__))


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

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __len__(self) -> int:
        return len(self._parts)

    def _joined(self, pair: bytes) -> bool:
        drawn = self._start.copy()
        drawn.update(pair)
        return int.from_bytes(drawn.digest()[:_WORD_BYTES], "big") < self._below
