"""A folder as a crash may leave it, computed from the calls that a process made.

A file is what was written to it, and what was flushed; a name likewise, and it is flushed with its
folder. From both come the states that a crash may leave after each call:

* killed: all that was written is there;
* power lost: only what was flushed;
* names without data, data without names: the file system flushed one on its own account;
* torn: killed in the middle of the next write, which is there by half; and the same with power
  lost, of all else only what was flushed.

Real file systems keep more than "power lost" (a new file's name with its first flush, for one):
what survives here survives there. Memory maps are not seen; SQLite maps its index of the
write-ahead log, which it makes anew after a crash, so that file is left out.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.recording import ACKNOWLEDGED, OUTPUT, Call

Tree = Mapping[str, bytes | None]
"""Contents by path relative to the folder; None for a folder."""

_LEFT_OUT = re.compile(r"-shm$")


@dataclass
class _File:
    data: bytearray
    flushed: bytes = b""


@dataclass
class _Open:
    file: _File | None
    path: str
    offset: int = 0
    appends: bool = False


@dataclass(frozen=True)
class State:
    """A folder after a crash.

    Attributes:
        kind: of crash.
        place: number of calls that were made, and the last one's name.
        tree: what is there.
        acknowledged: what the process had said was done.

    """

    kind: str
    place: str
    tree: Tree
    acknowledged: tuple[str, ...]


@dataclass
class Disk:
    """The folder while calls are played back.

    Args:
        folder: as it is before the first call; what it holds counts as flushed.

    """

    folder: Path
    names: dict[str, _File | None] = field(default_factory=dict)
    flushed_names: dict[str, _File | None] = field(default_factory=dict)
    acknowledged: list[str] = field(default_factory=list)
    _files: dict[int, _Open] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in sorted(self.folder.rglob("*")):
            data = None if path.is_dir() else path.read_bytes()
            name = str(path.relative_to(self.folder))
            self.names[name] = None if data is None else _File(bytearray(data), data)
        self.flushed_names = dict(self.names)

    def states(self, calls: list[Call]) -> Iterator[State]:
        """Yield each state that a crash may leave; many are the same."""
        for number, call in enumerate([*calls, None]):
            if call is None or self._touches(call):
                place = f"{number} {call.name if call else 'end'}"
                for kind, tree in self._trees(call):
                    yield State(kind, place, tree, tuple(self.acknowledged))
            if call is not None:
                self.apply(call)

    def apply(self, call: Call) -> None:
        """Play one call."""
        play = getattr(self, f"_{call.name}", None)
        if play is not None:
            play(call)
        else:
            assert not self._touches(call), f"the model does not know {call.name}"

    def _trees(self, following: Call | None) -> Iterator[tuple[str, Tree]]:
        yield "killed", _tree(self.names, flushed=False)
        yield "power lost", _tree(self.flushed_names, flushed=True)
        yield "names without data", _tree(self.names, flushed=True)
        yield "data without names", _tree(self.flushed_names, flushed=False)
        if following is None or following.name not in ("write", "pwrite64"):
            return
        target = self._files.get(following.numbers[0])
        if target is None or target.file is None:
            return
        kept = bytes(target.file.data), target.file.flushed
        half = following.strings[0][: following.result // 2]
        _put(target.file, half, self._place(target, following))
        yield "torn", _tree(self.names, flushed=False)
        target.file.flushed = bytes(target.file.data)
        yield "torn, power lost", _tree(self.names, flushed=True)
        target.file.data[:], target.file.flushed = bytearray(kept[0]), kept[1]

    def _openat(self, call: Call) -> None:
        name = self._name(call.strings[0])
        if name is None:
            self._files.pop(call.result, None)
            return
        if name not in self.names and "O_CREAT" in call.words:
            self.names[name] = _File(bytearray())
        file = self.names.get(name)
        if file is not None and "O_TRUNC" in call.words:
            file.data.clear()
        self._files[call.result] = _Open(file, name, appends="O_APPEND" in call.words)

    _open = _openat

    def _close(self, call: Call) -> None:
        self._files.pop(call.numbers[0], None)

    def _lseek(self, call: Call) -> None:
        if call.numbers[0] in self._files:
            self._files[call.numbers[0]].offset = call.result

    def _write(self, call: Call) -> None:
        if call.numbers[0] == OUTPUT:
            text = call.strings[0].decode()
            assert text.startswith(ACKNOWLEDGED), text
            self.acknowledged.append(text.removeprefix(ACKNOWLEDGED).rstrip("\n"))
            return
        target = self._files.get(call.numbers[0])
        if target is not None and target.file is not None:
            place = self._place(target, call)
            _put(target.file, call.strings[0][: call.result], place)
            target.offset = place + call.result

    def _pwrite64(self, call: Call) -> None:
        target = self._files.get(call.numbers[0])
        if target is not None and target.file is not None:
            _put(target.file, call.strings[0][: call.result], call.numbers[-1])

    def _ftruncate(self, call: Call) -> None:
        target = self._files.get(call.numbers[0])
        if target is not None and target.file is not None:
            _resize(target.file, call.numbers[1])

    def _truncate(self, call: Call) -> None:
        file = self.names.get(self._name(call.strings[0]) or "")
        if file is not None:
            _resize(file, call.numbers[0])

    def _fsync(self, call: Call) -> None:
        target = self._files.get(call.numbers[0])
        if target is None:
            return
        if target.file is not None:
            target.file.flushed = bytes(target.file.data)
            return
        for name in self.names.keys() | self.flushed_names.keys():
            if os.path.dirname(name) == target.path.rstrip("."):
                _copy_name(name, self.names, self.flushed_names)

    _fdatasync = _fsync

    def _rename(self, call: Call) -> None:
        old, new = (self._name(path) for path in call.strings)
        assert (old is None) == (new is None), "files do not move in or out of the folder"
        if old is not None and new is not None:
            self.names[new] = self.names.pop(old)

    def _link(self, call: Call) -> None:
        old, new = (self._name(path) for path in call.strings)
        assert (old is None) == (new is None), "files do not move in or out of the folder"
        if old is not None and new is not None:
            self.names[new] = self.names[old]

    def _unlink(self, call: Call) -> None:
        name = self._name(call.strings[0])
        if name is not None:
            del self.names[name]

    _rmdir = _unlink

    def _mkdir(self, call: Call) -> None:
        name = self._name(call.strings[0])
        if name is not None:
            self.names[name] = None

    def _touches(self, call: Call) -> bool:
        if any(number in self._files for number in call.numbers[:2]):
            return True
        if call.name in ("write", "pwrite64"):
            return call.numbers[0] == OUTPUT
        return any(self._name(path) is not None for path in call.strings)

    def _place(self, target: _Open, call: Call) -> int:
        if call.name == "pwrite64":
            return call.numbers[-1]
        assert target.file is not None, "folders are not written to"
        return len(target.file.data) if target.appends else target.offset

    def _name(self, path: bytes) -> str | None:
        """Relative to the folder, or None for a path elsewhere."""
        whole = Path(os.path.abspath(os.fsdecode(path)))
        return str(whole.relative_to(self.folder)) if whole.is_relative_to(self.folder) else None


def write_tree(tree: Tree, folder: Path) -> None:
    """Make a folder that holds a tree; parents that a crash lost are not made up."""
    folder.mkdir()
    for name in sorted(tree):
        data, path = tree[name], folder / name
        if not path.parent.exists():
            continue
        if data is None:
            path.mkdir()
        else:
            path.touch(mode=0o600)
            path.write_bytes(data)


def _tree(names: Mapping[str, _File | None], *, flushed: bool) -> Tree:
    return {
        name: None if file is None else file.flushed if flushed else bytes(file.data)
        for name, file in names.items()
        if not _LEFT_OUT.search(name)
    }


def _put(file: _File, data: bytes, place: int) -> None:
    if place > len(file.data):
        file.data.extend(bytes(place - len(file.data)))
    file.data[place : place + len(data)] = data


def _resize(file: _File, size: int) -> None:
    del file.data[size:]
    file.data.extend(bytes(size - len(file.data)))


def _copy_name(name: str, source: dict[str, _File | None], to: dict[str, _File | None]) -> None:
    if name in source:
        to[name] = source[name]
    else:
        to.pop(name, None)
