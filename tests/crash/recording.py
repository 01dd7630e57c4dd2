"""What a process did to a folder's files, call by call, as `strace` saw it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

CHANGES = [
    "open",
    "openat",
    "creat",
    "close",
    "lseek",
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "pwritev2",
    "ftruncate",
    "truncate",
    "fallocate",
    "fsync",
    "fdatasync",
    "sync_file_range",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "rmdir",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "copy_file_range",
    "sendfile",
    "dup",
    "dup2",
    "dup3",
]
"""Every call by which a file or a name may change, and those that say which file is meant."""

ACKNOWLEDGED = "ACK "
OUTPUT = 1
"""The descriptor on which a process says what is done."""

_CALL = re.compile(r"^(\d+) +(.*)$")
_WHOLE = re.compile(r"^(\w+)\((.*)\) += (-?\d+)")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass(frozen=True)
class Call:
    """One system call that succeeded.

    Attributes:
        name: of the call.
        numbers: integer arguments in order; a descriptor is its number.
        strings: string arguments in order.
        words: all arguments as text, for flags.
        result: what it returned.

    """

    name: str
    numbers: tuple[int, ...]
    strings: tuple[bytes, ...]
    words: str
    result: int


def read_trace(text: str) -> Iterator[Call]:
    """Yield the calls of a trace; those that another thread cut in two are put together."""
    begun: dict[str, str] = {}
    for line in text.splitlines():
        found = _CALL.match(line)
        assert found, line[:200]
        thread, rest = found.groups()
        if rest.endswith("<unfinished ...>"):
            begun[thread] = rest.removesuffix("<unfinished ...>")
            continue
        if rest.startswith("<... "):
            rest = begun.pop(thread) + rest.split(" resumed>", 1)[1]
        whole = _WHOLE.match(rest)
        if whole and int(whole[3]) >= 0:  # also passes over exits and signals
            yield _call(whole[1], whole[2], int(whole[3]))


def _call(name: str, arguments: str, result: int) -> Call:
    strings = tuple(bytes.fromhex(found.replace("\\x", "")) for found in _STRING.findall(arguments))
    words = _STRING.sub("s", arguments).strip()
    numbers = tuple(int(word) for word in re.findall(r"(?<![\w|])-?\d+(?![\w|])", words))
    return Call(name, numbers, strings, words, result)
