"""Files of a model folder: named inside it, JSON objects, and folders that appear whole."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.durable import put, sync


class CheckpointError(ValueError):
    """A model folder is incomplete, damaged or of an architecture that is not read."""


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file that a folder's index names, which may not leave the folder.

    Raises:
        CheckpointError: a path rather than a file name, or a link to a file elsewhere.

    """
    if not name or name != Path(name).name or name == ".." or "\0" in name:
        raise CheckpointError(
            f"Expected the name of a file in {folder}, got {name!r}. Only files of the folder "
            "itself are read."
        )
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(
            f"Expected a file in {folder}, got a link from {name} out of it. Copy the folder with "
            "links followed (cp -rL)."
        )
    return path


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: no such file, not JSON, or not an object.

    """
    if not path.is_file():
        raise CheckpointError(
            f"Expected {path.name} in {path.parent}, got none. Point at a whole model folder."
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"Expected JSON in {path}, got something else ({error}). Copy the file again."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"Expected a JSON object in {path}, got {type(value).__name__}. Copy the file again."
        )
    return value


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder beside `folder` that takes its place once it is written and synced.

    After an error in the block nothing is left, and what stood in `folder` stands.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for path in part.iterdir():
            sync(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    put(part, folder)
