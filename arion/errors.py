"""How a user's mistake, or a disk that fails, ends: one line on standard error, and exit code 2."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from pydantic import ValidationError
from safetensors import SafetensorError

from models.faults import first_fault

_OF_A_PATH = {
    errno.ENOENT: "got none. Check the path.",
    errno.ENOTDIR: "got a file where a folder should be. Check the path.",
    errno.EISDIR: "got a folder. Check the path.",
    errno.EACCES: "which this user may not use. Check who owns it.",
    errno.EPERM: "which this user may not use. Check who owns it.",
}
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn an error of the input or of the disk into one line and exit code 2."""
    try:
        yield
    except (ValueError, OSError, SafetensorError, sqlite3.Error) as error:
        typer.echo("error: " + _line(error), err=True)
        raise typer.Exit(2) from error


def _line(error: Exception) -> str:
    """What was expected, what came, and what to do; our own errors say all of it themselves."""
    if isinstance(error, ValidationError):  # whose own words show what was given, and a web page
        return f"{first_fault(error, 'what was given')}. Correct it."
    said = " ".join(str(error).split())
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, OSError) and number in _OF_A_PATH and error.filename is not None:
        return f"Expected a file or folder at {error.filename}, {_OF_A_PATH[number]}"
    if number in _OF_THE_DISK or isinstance(error, SafetensorError | sqlite3.Error):
        said += ". Free or mend the disk, then give the same command again."
    return said
