"""Graphs and committees: a second implementation, and who may choose them."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from privacy.secagg import graph as graph_module
from privacy.secagg.graph import Shape, attempt_seed, draw_groups
from tests.secagg.reference import digest, draw

NAMES = tuple(f"node-{place:02}" for place in range(12))
SEED = bytes(range(32))


def again(seed: bytes, names: tuple[str, ...], degree: int, committee: int) -> Any:
    """What the second implementation draws: edges and committee of one group."""
    (group,) = draw(seed, list(names), 1, degree, committee)
    edges = {(u, v) for u in names for v in group["neighbours"][u] if u < v}
    return edges, tuple(group["committee"])


@pytest.mark.parametrize("degree", [1, 4, 10])
@pytest.mark.parametrize("seed", [SEED, bytes(32)])
def test_a_second_implementation_agrees(seed: bytes, degree: int) -> None:
    graph = draw_groups(seed, NAMES, Shape(1, degree, 5))[0]
    edges, committee = again(seed, NAMES, degree, 5)
    assert {(u, v) for u in NAMES for v in graph.neighbours[u] if u < v} == edges
    assert all((u in graph.neighbours[v]) == (v in graph.neighbours[u]) for u, v in edges)
    assert graph.committee == committee


def test_neighbours_do_not_depend_on_who_was_asked_for_first() -> None:
    edges, _ = again(SEED, NAMES, 4, 5)
    for order in (NAMES[::-1], NAMES[5:] + NAMES[:5]):
        draw_groups.cache_clear()
        graph = draw_groups(SEED, NAMES, Shape(1, 4, 5))[0]
        found = {name: graph.neighbours[name] for name in order}
        assert {(u, v) for u in NAMES for v in found[u] if u < v} == edges
        assert {(v, u) for u in NAMES for v in found[u] if u > v} == edges
    assert list(graph.neighbours) == list(NAMES)
    with pytest.raises(KeyError):
        graph.neighbours["node-99"]


def test_ones_own_neighbours_take_one_hash_per_member(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes: list[bytes] = []
    joined = graph_module._DrawnNeighbours._joined

    def counted(self: Any, pair: bytes) -> bool:
        hashes.append(pair)
        return joined(self, pair)

    monkeypatch.setattr(graph_module._DrawnNeighbours, "_joined", counted)
    draw_groups.cache_clear()
    graph = draw_groups(SEED, NAMES, Shape(1, 4, 5))[0]
    assert not hashes
    assert len(graph.neighbours["node-03"]) == len(
        again(SEED, NAMES, 4, 5)[0] & {pair for pair in combinations(NAMES, 2) if "node-03" in pair}
    )
    assert len(hashes) == len(NAMES) - 1
    assert len(list(graph.neighbours.values())) == len(NAMES)
    assert len(hashes) == len(NAMES) * (len(NAMES) - 1) // 2


def test_the_complete_graph_has_nothing_to_draw() -> None:
    (one,), (other,) = (draw_groups(seed, NAMES, Shape(1, 11, 12)) for seed in (SEED, bytes(32)))
    assert one == other
    assert one.committee == NAMES
    assert all(peers == set(NAMES) - {name} for name, peers in one.neighbours.items())


def test_degrees_are_binomial() -> None:
    names = tuple(f"n{place:03}" for place in range(300))
    graph = draw_groups(SEED, names, Shape(1, 40, 10))[0]
    degrees = np.array([len(peers) for peers in graph.neighbours.values()])
    assert abs(degrees.mean() - 40) < 4 * np.sqrt(2 * 40 / 300)
    assert 0.7 < degrees.var() / (40 * (1 - 40 / 299)) < 1.35


def test_every_attempt_and_every_epoch_has_a_graph_of_its_own() -> None:
    seeds = {
        attempt_seed(epoch, number, attempt)
        for epoch in (SEED, bytes(32))
        for number in (1, 2, 258)
        for attempt in (1, 2)
    }
    assert len(seeds) == 12


def test_no_plan_chooses_its_graph(federation: Any) -> None:
    """Run, model, recipe and step differ: the graph is that of the epoch, round and attempt."""
    roster, plan = federation.roster, federation.plan(3)
    for changes in ({"run": "another"}, {"model_digest": "0" * 64}, {"recipe_digest": "1" * 64}):
        other = federation.plan(3, **changes)
        assert other.digest() != plan.digest()
        assert roster.groups(other)[0] is roster.groups(plan)[0]


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_groups_are_dealt_by_rank(groups: int) -> None:
    size = 12 // groups
    drawn = draw_groups(SEED, NAMES, Shape(groups, size - 1, size))
    ranked = sorted(NAMES, key=lambda name: digest("group", SEED, name))
    assert [group.members for group in drawn] == [
        tuple(sorted(ranked[place::groups])) for place in range(groups)
    ]
    for group in drawn:
        assert group.committee == group.members
        assert all(group.neighbours[x] == set(group.members) - {x} for x in group.members)


def test_two_members_meet_in_a_group_by_chance() -> None:
    """(n_g - 1) / (n - 1) of the attempts: 3 of 11."""
    together = 0
    for number in range(600):
        drawn = draw_groups(attempt_seed(SEED, number, 1), NAMES, Shape(3, 3, 4))
        together += any(NAMES[0] in g.neighbours and NAMES[7] in g.neighbours for g in drawn)
    assert abs(together / 600 - 3 / 11) < 4 * np.sqrt(3 / 11 * 8 / 11 / 600)
