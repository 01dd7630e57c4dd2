"""Rows, paired timing and the command line, on a benchmark that measures a fake clock."""

import itertools
import json
from pathlib import Path

import pytest

from benchmarks.harness import Row, context, interleave, main, paired_ratio


def test_steps_alternate_and_the_first_turn_is_not_timed() -> None:
    calls: list[str] = []
    clock = itertools.count()
    seconds = interleave(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, lambda: next(clock)
    )
    assert calls == ["a", "b"] * 3
    assert seconds == {"a": [1, 1], "b": [1, 1]}


def test_the_ratio_is_the_median_of_neighbours_ratios() -> None:
    assert paired_ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == 2.0
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0], [1.0, 2.0])


def test_rows_are_written_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(quick: bool) -> list[Row]:
        assert quick
        return [
            Row("step", 2.0, "s", limit="floor", limit_value=1.0, ratio_to_limit=2.0),
            Row(
                "rate", 3.0, "MB/s", "other", 1.5, 2.0, context=context(["torch"], config={"T": 8})
            ),
        ]

    path = tmp_path / "rows.json"
    main(run, ["--quick", "--json", str(path)])
    floor, rate = json.loads(path.read_text())
    assert list(floor) == [
        "metric", "value", "unit", "peer", "peer_value", "ratio_to_peer", "limit", "limit_value",
        "ratio_to_limit", "context",
    ]  # fmt: skip
    assert floor["peer"] is None
    assert floor["ratio_to_limit"] == 2.0
    assert rate["context"]["config"] == {"T": 8}
    assert set(rate["context"]) == {"versions", "cpu", "command", "config"}
    shown = capsys.readouterr().out
    assert "1.5 other" in shown
    assert "2.000" in shown
