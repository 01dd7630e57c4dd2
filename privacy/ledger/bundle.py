"""Ledgers as one file, for whoever checks them elsewhere: no key, no upload, no text is in it.

A bundle is a zip of entries, heads and countersignatures of every ledger below a folder, of the
heads that nodes keep as witnesses, of signed plans, and of the pins where there are some, at their
places in the folder. Equal ledgers give equal bytes. Reading trusts nothing: names and sizes are
checked before a byte is written.
"""

import io
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from privacy.ledger.entries import LedgerError
from privacy.ledger.files import read_lines, replace_durably
from privacy.ledger.log import COUNTERSIGNATURES_FILE, ENTRIES_FILE, HEADS_FILE
from privacy.ledger.pins import PINS_FILE
from privacy.ledger.plans import PLANS_FILE
from privacy.ledger.verify import WITNESS_SUFFIX

_LEDGER_FILES = (ENTRIES_FILE, HEADS_FILE, COUNTERSIGNATURES_FILE, PLANS_FILE)
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time a zip can hold
_PLAIN = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,254}")
LARGEST_BUNDLE_BYTES = 2**30
"""Of its files before they were packed."""


def export_bundle(root_dir: Path, out: Path) -> tuple[str, ...]:
    """Write every ledger below a folder into one file.

    Args:
        root_dir: folder of a node, of a coordinator or of a whole run.
        out: the bundle; replaced as a whole.

    Returns:
        Names of the files in the bundle, in order.

    Raises:
        LedgerError: as `bundle`.

    """
    data, names = bundle(root_dir)
    replace_durably(out, data)
    return names


def bundle(
    root_dir: Path,
    folders: Sequence[str] = ("",),
    more: Callable[[], Mapping[str, bytes]] = dict,
) -> tuple[bytes, tuple[str, ...]]:
    """Put the ledgers below a folder together, also while others write to them.

    Half a last line, which a node that writes or crashed may leave, is left out; entries are read
    last, so that those of every head are there.

    Args:
        root_dir: as `export_bundle`.
        folders: the folders in it that are looked through; all by default.
        more: further files by name, read after the entries.

    Returns:
        The bundle, and the names of its files, in order.

    Raises:
        LedgerError: no ledger below the folder, or a name that no bundle can hold.

    """
    found = dict(_exported(root_dir, folders))
    found.update(more())
    if not any(name.endswith(ENTRIES_FILE) for name in found):
        raise LedgerError(
            f"Expected a folder that holds {ENTRIES_FILE}, got {root_dir} without one below it. "
            "Give the folder of a node, of a coordinator or of a whole run."
        )
    _check_names(root_dir, sorted(found))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name in sorted(found):
            made.writestr(zipfile.ZipInfo(name, _EPOCH), found[name])
    return file.getvalue(), tuple(sorted(found))


@contextmanager
def opened_bundle(path: Path) -> Iterator[Path]:
    """Lay a bundle's files out in a folder that is removed afterwards.

    Raises:
        LedgerError: no bundle, a name that no bundle has, or more than 1 GiB.

    """
    with tempfile.TemporaryDirectory(prefix="arion-ledgers-") as folder:
        try:
            with zipfile.ZipFile(path) as opened:
                _check(path, opened.infolist())
                opened.extractall(folder)
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
            raise LedgerError(
                f"Expected a bundle of ledgers at {path}, got: {error}. Export it again."
            ) from error
        yield Path(folder)


def _exported(root_dir: Path, folders: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    found = {path for folder in folders for path in (root_dir / folder).rglob("*")}
    found |= {path for path in [root_dir / PINS_FILE] if path.is_file()}
    for path in sorted(found, key=lambda path: (path.name == ENTRIES_FILE, path)):
        name = path.relative_to(root_dir).as_posix()
        if path.name in _LEDGER_FILES:
            yield name, b"".join(line + b"\n" for line in read_lines(path).complete)
        elif path.name.endswith(WITNESS_SUFFIX) or name == PINS_FILE:
            yield name, path.read_bytes()


def _check(path: Path, members: list[zipfile.ZipInfo]) -> None:
    if sum(member.file_size for member in members) > LARGEST_BUNDLE_BYTES:
        raise LedgerError(
            f"Expected a bundle of at most {LARGEST_BUNDLE_BYTES} bytes, got more in {path}. "
            "Export fewer ledgers at once."
        )
    _check_names(path, [member.filename for member in members])


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Refuse what would leave the folder, is hidden, stands twice, or is no file of a ledger."""
    for place, name in enumerate(names):
        parts = PurePosixPath(name).parts
        known = parts[-1:] and parts[-1] in _LEDGER_FILES
        known = known or name.endswith(WITNESS_SUFFIX) or name == PINS_FILE
        if not known or not all(map(_PLAIN.fullmatch, parts)) or name in names[:place]:
            raise LedgerError(
                f"Expected names of ledger files in {path}, each once, got {name[:80]!r}. Bundles "
                "are made by `arion privacy ledger export`, of folders without hidden ones."
            )
