"""The rows of a small round, and that a wrong sum of either side is noticed."""

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import secagg_flower
from benchmarks.secagg import Case, round_rows
from benchmarks.secagg_flower import FlowerRound
from benchmarks.secagg_members import join
from benchmarks.secagg_round import DrawnNoise, OurRound
from privacy.dp.lattice import release_variance
from privacy.dp.noise import SecureGaussian

LENGTH = 5000


def updates(nodes: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(0, 0.1, LENGTH).astype(np.float32) for _ in range(nodes)]


@pytest.mark.parametrize(("dropped", "more"), [(0, ["node memory"]), (1, [])])
def test_rows_of_a_round(dropped: int, more: list[str]) -> None:
    rows = list(round_rows(Case(4, dropped, LENGTH), 1))
    assert [row.metric.split(", 4 nodes")[0] for row in rows] == [
        "node", "server", "server, opening alone", "node with noise", "sent by a node", *more,
    ]  # fmt: skip
    for row in rows[:5]:
        assert row.peer_value is not None
        assert row.ratio_to_peer is not None
        assert row.ratio_to_peer == pytest.approx(row.peer_value / row.value)
    assert 2 < rows[4].value < 3


@pytest.mark.parametrize("source", [DrawnNoise(), SecureGaussian()])
def test_a_wrong_sum_of_ours_is_noticed(tmp_path: Path, source: DrawnNoise) -> None:
    members = join([f"node-{place}" for place in range(4)], tmp_path)
    ours = OurRound(members, members.plan(1, LENGTH, 3), updates(4), 1, source)
    ours.run()
    assert ours.server.seconds > ours.open_s > 0
    nodes = list(ours.nodes.values())
    assert [node.messages for node in nodes] == [6] * 3
    assert sum(node.sent_bytes for node in nodes) == ours.server.received_bytes
    assert sum(node.received_bytes for node in nodes) == ours.server.sent_bytes
    copies = 3 if isinstance(source, DrawnNoise) else 1
    deviation = math.sqrt(copies * release_variance(ours.plan.step, 3))
    noise = np.random.default_rng(1).normal(0, deviation, LENGTH)
    true_D = np.sum(updates(3), axis=0)
    ours._check(true_D + noise)
    with pytest.raises(AssertionError, match="not the members' sum"):
        ours._check(true_D + 1.1 * noise)
    excess = 8 * deviation * true_D / np.linalg.norm(true_D)
    with pytest.raises(AssertionError, match="every member once"):
        ours._check(true_D + noise + excess)


def test_flowers_mean_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = FlowerRound(updates(4), 3, 1)
    peer.run()
    assert len(peer.node_s) == 3
    assert peer.server_s > peer.unmask_s > 0
    assert 8 * LENGTH < peer.upload_bytes < 9 * LENGTH
    read = secagg_flower.parameters_to_ndarrays
    monkeypatch.setattr(
        secagg_flower, "parameters_to_ndarrays", lambda given: [x + 1e-3 for x in read(given)]
    )
    with pytest.raises(AssertionError, match="not the mean"):
        FlowerRound(updates(4), 3, 1).run()
