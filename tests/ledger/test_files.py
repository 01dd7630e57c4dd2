"""Files that are replaced as a whole."""

from pathlib import Path

import pytest

from privacy.ledger.files import replace_durably


@pytest.mark.parametrize("old", [b"", b"short", b"longer than what comes"])
def test_a_file_that_takes_the_room_of_another(tmp_path: Path, old: bytes) -> None:
    """Of that one nothing is left, neither its name nor bytes beyond the end."""
    room, path = tmp_path / "1", tmp_path / "3"
    room.write_bytes(old)
    path.write_bytes(b"what was there before, and is longer than both")
    replace_durably(path, b"it ", memoryview(b"comes"), instead_of=room)
    assert path.read_bytes() == b"it comes"
    assert [each.name for each in tmp_path.iterdir()] == ["3"]
