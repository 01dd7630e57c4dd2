"""Progress without a terminal: a line at the beginning and one at the end of a stage."""

import pytest

from arion.progress import LineProgress, Stage


def test_a_stage_begins_and_ends_once(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LineProgress()
    for stage in ("reading", "writing"):
        told = Stage(progress, stage)
        for done in (1, 2, 3, 3, 3):
            told(done, 3)
    lines = capsys.readouterr().err.splitlines()
    begun = [f"{stage}: 3 steps" for stage in ("reading", "writing")]
    assert [line for line in lines if line.endswith("steps")] == begun
    assert [line.split()[:2] for line in lines[1::2]] == [["reading:", "3/3"], ["writing:", "3/3"]]
    assert len(lines) == 4
