"""`arion run`: the operator's runs over the service, from a run file to the merged model."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from arion.errors import user_errors
from arion.logs import LogFormat, LogFormatOption, set_up_logs
from arion.progress import Progress, make_progress
from arion.run_file import RunFile, load_run_file
from arion.run_words import (
    attempt_json,
    print_order,
    status_json,
    status_line,
    sum_words,
    waiting_words,
)
from arion.runs import (
    RunStatus,
    cancel,
    carry_on,
    export_model,
    find,
    list_runs,
    plan_order,
    status_now,
    status_of,
    submit,
)
from coordinator.attempts import Attempt, Phase
from coordinator.errors import RunError
from coordinator.outcome import Observer, RoundOutcome
from coordinator.service.home import ServiceHome
from models.optimiser import OptimiserState

run_app = typer.Typer(no_args_is_help=True, help="Runs over the service. For the operator.")

_POLL_S = 0.5
_NOT_FINISHED = 1
_INTERRUPTED = 130

RunFilePath = Annotated[Path, typer.Argument(metavar="RUN.toml", help="What to do.")]
Coordinator = Annotated[Path, typer.Option(help="The coordinator's home, on its machine.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The run's name.")]
NewName = Annotated[
    str | None, typer.Option("--name", help="The run's name.", show_default="the file's")
]
Units = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=COUNT", help="Units that a member declares; repeatable."),
]
Unit = Annotated[
    str | None, typer.Option(help="record, a field, or institution.", show_default="the file's")
]
Base = Annotated[str | None, typer.Option(help="Model folder.", show_default="model.base")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@run_app.command("plan")
def plan_command(
    run_file: RunFilePath,
    *,
    coordinator: Coordinator,
    name: NewName = None,
    units: Units = None,
    unit: Unit = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Show what a run would do and cost each member; nothing is changed and nobody is asked.

    Example: arion run plan run.toml --coordinator srv --units st-mary=1800 --units city=950
    """
    with user_errors(), closing(ServiceHome.open(coordinator)) as service:
        run = _read(run_file, units, unit, base)
        print_order(plan_order(service, run, name or run_file.stem), as_json)


@run_app.command("submit")
def submit_command(
    run_file: RunFilePath,
    *,
    coordinator: Coordinator,
    name: NewName = None,
    units: Units = None,
    unit: Unit = None,
    base: Base = None,
    start: Annotated[
        bool, typer.Option("--start/--no-start", help="Carry it out, or leave it to `resume`.")
    ] = True,
    as_json: Json = False,
    log_format: LogFormatOption = LogFormat.TEXT,
) -> None:
    """Make a run and carry it out over the service's members, to its end.

    The service must be serving. A run that was interrupted goes on: arion run resume.

    Example: arion run submit run.toml --coordinator srv --units st-mary=1800 --units city=950
    """
    with user_errors(), closing(ServiceHome.open(coordinator)) as service:
        run = _read(run_file, units, unit, base)
        order = submit(service, run, name or run_file.stem)
        if not start:
            print_order(order, as_json)
            return
        status = _carry_on(service, order.settings.run, log_format)
    _print_end(status, as_json)


@run_app.command("resume")
def resume_command(
    name: Name,
    *,
    coordinator: Coordinator,
    as_json: Json = False,
    log_format: LogFormatOption = LogFormat.TEXT,
) -> None:
    """Carry a run on from wherever it stands: not begun, interrupted or stopped.

    Example: arion run resume first --coordinator srv
    """
    with user_errors(), closing(ServiceHome.open(coordinator)) as service:
        status = _carry_on(service, name, log_format)
    _print_end(status, as_json)


@run_app.command("cancel")
def cancel_command(
    name: Name,
    *,
    coordinator: Coordinator,
    as_json: Json = False,
    log_format: LogFormatOption = LogFormat.TEXT,
) -> None:
    """End a run for good; what nodes have released stays charged.

    Example: arion run cancel first --coordinator srv
    """
    with (
        user_errors(),
        closing(ServiceHome.open(coordinator)) as service,
        _telling(status_of(find(service, name)), log_format) as observer,
    ):
        status = cancel(service, name, observer)
    if as_json:
        typer.echo(json.dumps(status_json(status)))
    elif status.state == "cancelling":
        typer.echo(f"{name} will end at its driver's next step; see arion run watch")
    else:
        typer.echo(f"{name} is cancelled after {status.round} of {status.rounds} rounds")


@run_app.command("list")
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


@run_app.command("watch")
def watch_command(name: Name, *, coordinator: Coordinator, as_json: Json = False) -> None:
    """Follow a run until it ends or stops. Exit code 0: it is finished; 1: it is not.

    With --json, one line per attempt, and the state at the end.

    Example: arion run watch first --coordinator srv
    """
    with user_errors(), closing(ServiceHome.open(coordinator)) as service:
        home = find(service, name)
        with _progress(status_of(home).rounds) as progress:
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
    raise typer.Exit(0 if status.state == "finished" else _NOT_FINISHED)


@run_app.command("model")
def model_command(
    name: Name,
    *,
    coordinator: Coordinator,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
) -> None:
    """Write a finished run's model, adapters merged, as a plain model folder.

    Example: arion run model first --coordinator srv --out models/first
    """
    with user_errors(), closing(ServiceHome.open(coordinator)) as service:
        export_model(service, name, out)
    typer.echo(f"the model of {name} is in {out}")


def _read(path: Path, units: list[str] | None, unit: str | None, base: str | None) -> RunFile:
    """Read the run file; options override it."""
    service: dict[str, Any] = {} if unit is None else {"unit": unit}
    run = load_run_file(path, {"service": service, "model": {} if base is None else {"base": base}})
    declared = {**run.service.units, **dict(map(_count, units or ()))}
    section = run.service.model_copy(update={"units": declared})
    return run.model_copy(update={"service": section})


def _count(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if not count.isdecimal() or int(count) < 1:
        raise RunError(f"Expected --units NAME=COUNT with a count of 1 or more, got {text[:80]!r}.")
    return name, int(count)


@contextmanager
def _progress(rounds: int) -> Iterator[Progress]:
    progress = make_progress()
    progress.stage("rounds", rounds)
    try:
        yield progress
    finally:
        progress.close()


@contextmanager
def _telling(status: RunStatus, log_format: LogFormat) -> Iterator[Observer]:
    """An observer that tells of every attempt, for a run that this process drives."""
    set_up_logs(log_format)
    with _progress(status.rounds) as progress:

        def observer(outcome: RoundOutcome, _: OptimiserState) -> None:
            text = f"{sum(outcome.seconds.values()):.1f} s"
            if len(outcome.survivors) < len(status.members):
                text += f", {sum_words(outcome.survivors, status.members)}"
            _note(progress, outcome.round, outcome.attempt, outcome.code, text)

        yield observer


def _carry_on(service: ServiceHome, name: str, log_format: LogFormat) -> RunStatus:
    with _telling(status_of(find(service, name)), log_format) as observer:
        try:
            return carry_on(service, name, observer)
        except KeyboardInterrupt:
            typer.echo(f"interrupted; go on with: arion run resume {name}", err=True)
            raise typer.Exit(_INTERRUPTED) from None


def _tell(progress: Progress, attempt: Attempt, members: Sequence[str], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(attempt_json(attempt)))
    else:
        text = sum_words(attempt.survivors, members)
        _note(progress, attempt.round, attempt.attempt, attempt.code, text)


def _note(progress: Progress, number: int, attempt: int, code: str, text: str) -> None:
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


def _print_end(status: RunStatus, as_json: bool) -> None:
    typer.echo(json.dumps(status_json(status)) if as_json else status_line(status))
    raise typer.Exit(0 if status.state == "finished" else _NOT_FINISHED)
