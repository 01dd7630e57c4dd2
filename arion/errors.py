"""How a user's mistake ends: one line on standard error, and exit code 2."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn an error of the input into one line and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo("error: " + " ".join(str(error).split()), err=True)
        raise typer.Exit(2) from error
