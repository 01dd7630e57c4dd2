"""The study of epsilon: its cells, its table's arithmetic, its chart."""

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.utility import (
    EPSILONS,
    KINDS,
    QUICK,
    SETS,
    Cell,
    Effort,
    cells,
    claim,
    run_file,
    table,
    with_gaps,
)
from benchmarks.utility_chart import svg

LOSS = {1.0: 4.8, 3.0: 4.5, 8.0: 4.25, math.inf: 4.0}


def rows() -> list[dict[str, Any]]:
    return [
        {
            "data_set": name, "kind": kind, "base": 5.0, "loss_sd": 0.01, "learning_rate": 1e-3,
            "epsilon": epsilon if math.isfinite(epsilon) else None,
            "loss": LOSS[epsilon] + (0.1 if kind == "lora" else 0.0),
        }
        for name in SETS for kind in KINDS for epsilon in EPSILONS
    ]  # fmt: skip


def test_a_gap_is_what_epsilon_adds_to_the_loss_without_privacy() -> None:
    gaps = [row["gap"] for row in with_gaps(rows())[: len(EPSILONS)]]
    assert gaps == pytest.approx([0.8, 0.5, 0.25, 0.0])


def test_the_table_has_a_line_per_data_set_and_kind() -> None:
    lines = table(with_gaps(rows())).splitlines()
    assert len(lines) == 2 + len(SETS) * len(KINDS)
    assert lines[3] == (
        "| medquad | lora | 5.000 | 4.900 (+0.800) | 4.600 (+0.500) | 4.350 (+0.250) | "
        "4.100 (+0.000) |"
    )


def test_the_chart_names_both_kinds_and_is_drawn_alike_twice() -> None:
    drawn = svg(with_gaps(rows()))
    assert drawn == svg(with_gaps(rows()))
    assert drawn != svg(with_gaps(rows()[:8]))
    assert "<svg" in drawn


def test_work_of_another_effort_is_not_taken_for_this_one(tmp_path: Path) -> None:
    claim(tmp_path / "work", QUICK)
    claim(tmp_path / "work", QUICK)
    with pytest.raises(ValueError, match="another"):
        claim(tmp_path / "work", Effort())


@pytest.mark.parametrize("cell", cells("medquad"), ids=lambda cell: cell.name)
def test_only_a_cell_without_an_epsilon_trains_without_noise(cell: Cell, tmp_path: Path) -> None:
    run = run_file(cell, tmp_path, tmp_path, QUICK)
    private = math.isfinite(cell.epsilon)
    assert run.privacy.enabled is private
    assert run.compare.arms == (("central_dp",) if private else ("central",))
    assert run.training.kind == cell.kind
    if private:
        assert run.privacy.epsilon == cell.epsilon
