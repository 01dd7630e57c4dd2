"""The model of a disk: it loses what was not flushed, and only that."""

from pathlib import Path

import pytest

from tests.crash.actors import Actors, needs_strace
from tests.crash.disk import Disk, State
from tests.crash.recording import Call, read_trace


def states(actors: Actors, folder: Path, name: str) -> list[State]:
    home = folder / "home"
    home.mkdir()
    disk = Disk(home)
    return list(disk.states(actors.record([name, str(home), ""], folder)))


@needs_strace
def test_what_was_not_flushed_may_be_lost(actors: Actors, tmp_path: Path) -> None:
    found = states(actors, tmp_path, "write-without-flush")
    last = {state.kind: dict(state.tree) for state in found if not state.acknowledged}
    assert last["killed"] == {"a.part": b"12345678"}
    assert last["power lost"] == {}
    assert last["names without data"] == {"a.part": b""}
    written = [state for state in found if state.acknowledged == ("written",)]
    assert {"a.part": b"12345678"} in [state.tree for state in written if state.kind == "killed"]
    torn = [state for state in found if state.kind == "torn"]
    assert {"a.part": b"1234"} in [state.tree for state in torn]
    renamed = [state for state in found if state.acknowledged[-1:] == ("renamed",)]
    lost = [state.tree for state in renamed if state.kind == "power lost"]
    assert {} in lost  # the rename was not flushed
    assert all(
        state.tree == {"a": b"12345678"} for state in found if "flushed" in state.acknowledged
    )


@needs_strace
@pytest.mark.parametrize(("mode", "kept"), [("FULL", True), ("NORMAL", False)])
def test_sqlite_keeps_acknowledged_rows_only_where_it_flushes(
    actors: Actors, tmp_path: Path, mode: str, kept: bool
) -> None:
    """The reason for `synchronous=FULL`: with NORMAL a loss of power takes acknowledged rows."""
    found = states(actors, tmp_path, f"sqlite-{mode}")
    after = [state.tree for state in found if len(state.acknowledged) == 5]
    frame = 24 + 4096
    logs = {len(tree.get("rows.sqlite-wal") or b"") // frame for tree in after}
    assert (min(logs) >= 5) == kept


def test_calls_that_threads_cut_in_two_are_put_together() -> None:
    text = (
        '7 write(3, "\\x61\\x62", 2 <unfinished ...>\n'
        "8 close(4) = 0\n"
        "7 <... write resumed>) = 2\n"
        "7 fsync(3) = -1 EIO (Input/output error)\n"
        "7 +++ exited with 0 +++\n"
    )
    assert list(read_trace(text)) == [
        Call("close", (4,), (), "4", 0),
        Call("write", (3, 2), (b"ab",), "3, s, 2", 2),
    ]


def test_a_call_that_the_model_does_not_know_is_not_passed_over(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    path = str(tmp_path / "a").encode()
    disk.apply(Call("symlink", (), (b"/elsewhere", b"/there"), "s, s", 0))
    with pytest.raises(AssertionError, match="does not know symlink"):
        disk.apply(Call("symlink", (), (path, path), "s, s", 0))
