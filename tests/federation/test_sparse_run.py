"""A whole run of 60 members over a random graph: driver, nodes, consents and ledgers."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import client.app
from privacy.rounds import RoundPlan
from privacy.secagg.coordinator import OpenedSum, StreamingSum
from tests.small_federation import RUN, Ground, SmallFederation, build

pytestmark = pytest.mark.slow
MEMBERS, COLLUDERS, GONE = 60, 6, 6
NAMES = tuple(f"clinic-{number:02}" for number in range(MEMBERS))
STEP = {"expected_batch": float(MEMBERS), "honest_survivors": MEMBERS - COLLUDERS - GONE}


@pytest.fixture(scope="module")
def wide_ground(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Sixty institutions of two persons each, from the texts of the four."""
    folder = tmp_path_factory.mktemp("wide")
    texts = [
        json.loads(line)["text"]
        for path in sorted(ground.data.iterdir())
        for line in path.read_text().splitlines()
    ]
    for place, name in enumerate(NAMES):
        own = [{"text": texts[2 * place + k], "person": f"{name}-{k}"} for k in range(2)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own))
    return replace(ground, data=folder)


@pytest.fixture
def wide(wide_ground: Ground, tmp_path: Path) -> Iterator[SmallFederation]:
    settings = {"rounds": 1, "n_min": MEMBERS - GONE, "colluders": COLLUDERS}
    yield build(wide_ground, tmp_path / "wide", STEP, **settings)
    client.app.close_nodes()


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RoundPlan, OpenedSum]]:
    """Every sum that is opened, with its plan."""
    found: list[tuple[RoundPlan, OpenedSum]] = []
    original = StreamingSum.open_sum

    def spy(self: StreamingSum, *args: Any, **options: Any) -> OpenedSum:
        found.append((self._plan, original(self, *args, **options)))
        return found[-1][1]

    monkeypatch.setattr(StreamingSum, "open_sum", spy)
    return found


def test_sixty_members_over_a_random_graph(
    wide: SmallFederation, sums: list[tuple[RoundPlan, OpenedSum]]
) -> None:
    gone = NAMES[7 : 7 + GONE]
    state = wide.run(lambda name, action: action == "train.upload" and name in gone)
    assert state.step == 1
    ((plan, opened),) = sums
    assert plan.is_sparse
    assert plan.committee < MEMBERS > plan.degree + 1
    there = set(NAMES) - set(gone)
    assert set(opened.survivors) == there
    ring = 1 << plan.step.ring_bits
    drawn = SimpleNamespace(run=RUN, round=1, attempt=1, step=plan.step)
    expected = sum(wide.encoding(name, drawn).astype(np.int64) for name in there)  # type: ignore[arg-type]
    np.testing.assert_array_equal(opened.words.astype(np.int64) % ring, expected % ring)
    wide.verified()
