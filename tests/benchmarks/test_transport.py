"""Both sides of the transport benchmark keep what was sent, and the service's memory is its own."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.transport import Stage

SIZE = 3_000_000


@pytest.mark.slow
def test_uploads_arrive_on_both_sides(tmp_path: Path) -> None:
    with ExitStack() as parties:
        stage = Stage(tmp_path, SIZE, parties)
        row = stage.row(2, 1)
        assert row.value > 0
        assert row.limit_value is not None
        assert row.limit_value > 0
        memory = stage.memory_row()
        assert 20 < memory.value < 1_000
    assert not list((tmp_path / "service" / "blobs").glob("parts/*"))
