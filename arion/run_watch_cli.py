"""`arion run list` and `watch`: where runs stand. Nothing that trains is loaded."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from arion.errors import user_errors
from arion.options import Json
from arion.progress import Progress, make_progress
from arion.run_status import find, list_runs, status_now, status_of
from arion.run_words import attempt_json, status_json, status_line, sum_words, waiting_words
from coordinator.attempts import Attempt, Phase
from coordinator.service.home import ServiceHome

NOT_FINISHED = 1
"""Exit code where a run is not finished."""
_POLL_S = 0.5

Coordinator = Annotated[Path, typer.Option(help="The coordinator's home, on its machine.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The run's name.")]


def list_command(*, coordinator: Coordinator, as_json: Json = False) -> None:
    """List all runs and where they stand.

    Example: arion run list --coordinator srv
    """
    with user_errors(), closing(ServiceHome.open(coordinator)) as service:
        found = list_runs(service)
    if as_json:
        typer.echo(json.dumps([status_json(status) for status in found], indent=2))
        return
    for status in found:
        typer.echo(status_line(status))
    if not found:
        typer.echo("no runs yet: arion run submit RUN.toml --coordinator HOME")


def watch_command(name: Name, *, coordinator: Coordinator, as_json: Json = False) -> None:
    """Follow a run until it ends or stops. Exit code 0: it is finished; 1: it is not.

    With --json, one line per attempt, and the state at the end.

    Example: arion run watch first --coordinator srv
    """
    with user_errors(), closing(ServiceHome.open(coordinator)) as service:
        home = find(service, name)
        with rounds_progress(status_of(home).rounds) as progress:
            told: set[tuple[int, int]] = set()
            while True:
                status = status_now(service, home)
                for attempt in status.attempts:
                    if _is_news(attempt, told):
                        _tell(progress, attempt, status.members, as_json)
                if status.waiting and not as_json:
                    progress.step(status.round, waiting_words(status.waiting))
                if status.is_over or status.state == "stopped":
                    break
                time.sleep(_POLL_S)
    typer.echo(json.dumps(status_json(status)) if as_json else status_line(status))
    raise typer.Exit(0 if status.state == "finished" else NOT_FINISHED)


@contextmanager
def rounds_progress(rounds: int) -> Iterator[Progress]:
    """Progress over a run's rounds."""
    progress = make_progress()
    progress.stage("rounds", rounds)
    try:
        yield progress
    finally:
        progress.close()


def _tell(progress: Progress, attempt: Attempt, members: Sequence[str], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(attempt_json(attempt)))
    else:
        text = sum_words(attempt.survivors, members)
        note_attempt(progress, attempt.round, attempt.attempt, attempt.code, text)


def note_attempt(progress: Progress, number: int, attempt: int, code: str, text: str) -> None:
    """Tell of an attempt that is over: that it was aborted, or `text` of the round."""
    if code:
        progress.note(f"round {number} attempt {attempt} aborted: {code}")
    else:
        progress.step(number, text)


def _is_news(attempt: Attempt, told: set[tuple[int, int]]) -> bool:
    place = (attempt.round, attempt.attempt)
    if attempt.phase not in (Phase.RECORDED, Phase.ABORTED) or place in told:
        return False
    told.add(place)
    return True
