"""What passes the cache, to a file and from it, is what was given, on whatever file system."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from privacy.ledger import uncached
from privacy.ledger.files import DiskError, replace_durably
from privacy.ledger.uncached import read_uncached

BLOCK, ROOM = 4096, 1 << 16
LENGTHS = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, ROOM - 1, ROOM, ROOM + 1, 3 * ROOM + BLOCK + 5]


@pytest.fixture(autouse=True)
def small_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncached._ROOMS, "room", uncached._ROOMS.room[:ROOM])


def parts_of(length: int) -> list[bytes | memoryview]:
    data = os.urandom(length)
    return [data[:8], b"", memoryview(data)[8:353], memoryview(bytearray(data))[353:]]


def test_all_lengths_come_whole(tmp_path: Path) -> None:
    path = tmp_path / "state"
    for length in LENGTHS:
        parts = parts_of(length)
        replace_durably(path, *parts, is_cached=False)
        assert path.read_bytes() == b"".join(parts), length
    assert [each.name for each in tmp_path.iterdir()] == ["state"]
    assert path.stat().st_mode & 0o777 == 0o600


def system(monkeypatch: pytest.MonkeyPatch, **replaced: Any) -> None:
    for name, call in replaced.items():
        monkeypatch.setattr(uncached.os, name, call)


def test_whole_blocks_pass_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has such writes: of each, its length and whether it does."""
    seen, write = list[tuple[int, bool]](), os.write

    def noted(descriptor: int, data: memoryview) -> int:
        flags = uncached.fcntl.fcntl(descriptor, uncached.fcntl.F_GETFL)
        seen.append((len(data), bool(flags & os.O_DIRECT)))
        return write(descriptor, data)

    probe = uncached.open_uncached(tmp_path / "probe", os.O_WRONLY | os.O_CREAT, 0o600)
    has_direct = bool(uncached.fcntl.fcntl(probe, uncached.fcntl.F_GETFL) & os.O_DIRECT)
    os.close(probe)
    system(monkeypatch, write=noted)
    replace_durably(tmp_path / "state", *parts_of(ROOM + BLOCK + 5), is_cached=False)
    assert seen == [(ROOM, has_direct), (BLOCK, has_direct), (5, False)]


def test_a_file_system_without_such_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, original = list[int](), os.open

    def no_direct(path: Path, flags: int, *rest: Any, **more: Any) -> int:
        opened.append(flags)
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return original(path, flags, *rest, **more)

    system(monkeypatch, open=no_direct)
    parts = parts_of(3 * ROOM)
    replace_durably(tmp_path / "state", *parts, is_cached=False)
    assert (tmp_path / "state").read_bytes() == b"".join(parts)
    assert opened[0] & os.O_DIRECT
    assert not opened[1] & os.O_DIRECT


@pytest.mark.parametrize("good", [0, 1])
def test_a_disk_of_larger_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: int
) -> None:
    """It refuses what passes the cache, at the beginning or later; in a part at a time, too."""
    calls, write = list[int](), os.write

    def particular(descriptor: int, data: memoryview) -> int:
        calls.append(len(data))
        flags = uncached.fcntl.fcntl(descriptor, uncached.fcntl.F_GETFL)
        if flags & os.O_DIRECT and len(calls) > good:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return write(descriptor, data[:BLOCK])

    system(monkeypatch, write=particular)
    parts = parts_of(2 * ROOM + 5)
    replace_durably(tmp_path / "state", *parts, is_cached=False)
    assert (tmp_path / "state").read_bytes() == b"".join(parts)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (tmp_path / "state").write_bytes(b"old")

    def failing(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    system(monkeypatch, write=failing)
    with pytest.raises(DiskError, match="state"):
        replace_durably(tmp_path / "state", *parts_of(ROOM), is_cached=False)
    assert (tmp_path / "state").read_bytes() == b"old"


def test_what_no_cache_helps_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not tried again for ever."""

    def refusing(*_: Any) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    system(monkeypatch, write=refusing)
    with pytest.raises(DiskError):
        replace_durably(tmp_path / "state", *parts_of(ROOM), is_cached=False)


def test_all_lengths_are_read(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    for length in LENGTHS:
        path.write_bytes(data := os.urandom(length))
        assert read_uncached(path) == data, length
    with pytest.raises(FileNotFoundError):
        read_uncached(tmp_path / "other")


@pytest.mark.parametrize("good", [0, 1])
def test_reading_from_a_disk_of_larger_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: int
) -> None:
    calls, read = list[int](), os.readv

    def particular(descriptor: int, rooms: list[memoryview]) -> int:
        calls.append(len(rooms[0]))
        flags = uncached.fcntl.fcntl(descriptor, uncached.fcntl.F_GETFL)
        if flags & os.O_DIRECT and len(calls) > good:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return read(descriptor, [rooms[0][:BLOCK]])

    system(monkeypatch, readv=particular)
    (tmp_path / "upload").write_bytes(data := os.urandom(2 * ROOM + 5))
    assert read_uncached(tmp_path / "upload") == data


def test_a_disk_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not tried again for ever, and no half of a file."""
    (tmp_path / "upload").write_bytes(bytes(ROOM))
    for code in (errno.EIO, errno.EINVAL):

        def failing(*_: Any, code: int = code) -> int:
            raise OSError(code, os.strerror(code))

        system(monkeypatch, readv=failing)
        with pytest.raises(OSError, match=os.strerror(code)):
            read_uncached(tmp_path / "upload")


def test_a_file_that_is_cut_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "upload", os.readv
    path.write_bytes(data := os.urandom(3 * ROOM))

    def cutting(descriptor: int, rooms: list[memoryview]) -> int:
        os.truncate(path, ROOM + 9)
        return read(descriptor, rooms)

    system(monkeypatch, readv=cutting)
    assert read_uncached(path) == data[: ROOM + 9]
