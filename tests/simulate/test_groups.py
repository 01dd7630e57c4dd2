"""A run whose members are summed in random groups, one of them spoiling its own each time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import client.gate
from arion.mechanism import choose_cohort
from arion.progress import Silent
from arion.run_file import FederationSection, RunFile, RunFileError
from arion.simulate import Simulation
from privacy.ledger.pins import load_pins
from privacy.ledger.verify import verify_tree
from privacy.secagg.parameters import ParameterError
from tests.small_federation import ground, make_federation

__all__ = ["ground", "make_federation"]  # fixtures

SIX = {"nodes": 6, "groups": 2}
GUILTY = "hospital"
SPLIT = {"heldout": 0.3, "validation": 0.3}


class Loud:
    """A trainer that does not clip."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    @property
    def unit_count(self) -> int:
        return int(self._trainer.unit_count)

    def clipped_sum(self, drawn: Any, step: Any) -> np.ndarray:
        return 1e4 * self._trainer.clipped_sum(drawn, step)


def test_a_member_that_spoils_sums_costs_its_groups_and_is_named(
    make_run: Callable[..., RunFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = client.gate.release_words

    def loud(trainer: Any, step: Any, entropy: Any, place: tuple[Any, ...]) -> Any:
        return release(Loud(trainer) if place[0] == GUILTY else trainer, step, entropy, place)

    monkeypatch.setattr(client.gate, "release_words", loud)
    run = make_run(
        federation=SIX, training={"rounds": 12}, data={**SPLIT, "evaluate_each_round": 0}
    )
    report = Simulation(run, tmp_path / "run", Silent()).run()
    assert len(report["attempts"]) == 12
    spoilt = [attempt for attempt in report["attempts"] if attempt["spoilt"]]
    assert len(spoilt) >= 10  # now and then it draws no unit
    for attempt in spoilt:
        assert len(attempt["survivors"]) == len(attempt["spoilt"]) == 3
        assert GUILTY in attempt["spoilt"]
        assert not set(attempt["survivors"]) & set(attempt["spoilt"])
    assert [suspect["name"] for suspect in report["suspects"]] == [GUILTY]
    assert "in a spoilt group" in (tmp_path / "run" / "report.html").read_text()
    reports = verify_tree(tmp_path / "run", load_pins(tmp_path / "run" / "pins.json"))
    assert all(found.is_ok for found in reports)
    assert all(found.epsilon_micro <= 8e6 for found in reports if found.kind == "node")


@pytest.mark.slow
def test_honest_groups_all_count(make_run: Callable[..., RunFile], tmp_path: Path) -> None:
    report = Simulation(make_run(federation=SIX, data=SPLIT), tmp_path / "run", Silent()).run()
    assert [len(attempt["survivors"]) for attempt in report["attempts"]] == [6, 6, 6]
    assert report["suspects"] == []
    assert report["mechanism"]["honest_survivors"] == 2  # of a group of 3, one may collude


@pytest.mark.parametrize(("nodes", "groups"), [(7, 2), (4, 2), (5, 5)])
def test_groups_that_do_not_fit(nodes: int, groups: int) -> None:
    with pytest.raises(RunFileError, match="equal groups of at least 3"):
        choose_cohort(FederationSection(groups=groups), nodes)


def test_more_than_fifty_in_a_group_are_an_option_of_their_own() -> None:
    with pytest.raises(RunFileError, match=r"2\^-40 .federation.sparse_graph = true"):
        choose_cohort(FederationSection(colluders=6), 60)
    cohort = choose_cohort(FederationSection(colluders=6, sparse_graph=True), 60)
    assert cohort.is_sparse
    assert cohort.failure == 2.0**-40
    assert choose_cohort(FederationSection(groups=2), 60).failure == 0  # 30 in each
    with pytest.raises(ParameterError, match=r"below 2.-40"):  # half of them may conspire
        choose_cohort(FederationSection(colluders=30, n_min=31, sparse_graph=True), 60)


def test_noise_of_which_a_share_bounds_nothing_is_refused_in_words(
    make_federation: Callable[..., Any],
) -> None:
    with pytest.raises(RunFileError, match=r"all others collude. Lower privacy\.epsilon"):
        make_federation({"noise_multiplier": 0.05, "sampling_probability": 0.02})
