"""`arion run plan|submit|resume|cancel|model`: what makes runs, drives them and ends them."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from arion.errors import user_errors
from arion.logs import LogFormat, LogFormatOption, set_up_logs
from arion.options import Json
from arion.order_words import print_order
from arion.run_file import RunFile, load_run_file
from arion.run_status import RunStatus, find, status_of
from arion.run_watch_cli import NOT_FINISHED, Coordinator, Name, note_attempt, rounds_progress
from arion.run_words import status_json, status_line, sum_words
from arion.runs import cancel, carry_on, export_model, plan_order, submit
from coordinator.errors import RunError
from coordinator.outcome import Observer, RoundOutcome
from coordinator.service.home import ServiceHome
from models.optimiser import OptimiserState

_INTERRUPTED = 130

RunFilePath = Annotated[Path, typer.Argument(metavar="RUN.toml", help="What to do.")]
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


def model_command(
    name: Name,
    *,
    coordinator: Coordinator,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
) -> None:
    """Write a run's model, adapters merged, as a plain model folder.

    Of a run that was cancelled, the model after the rounds that it made.

    Example: arion run model first --coordinator srv --out models/first
    """
    with user_errors(), closing(ServiceHome.open(coordinator)) as service:
        status = export_model(service, name, out)
    made = "" if status.state == "finished" else f", after {status.round} of {status.rounds} rounds"
    typer.echo(f"the model of {name}{made} is in {out}")


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
def _telling(status: RunStatus, log_format: LogFormat) -> Iterator[Observer]:
    """An observer that tells of every attempt, for a run that this process drives."""
    set_up_logs(log_format)
    with rounds_progress(status.rounds) as progress:

        def observer(outcome: RoundOutcome, _: OptimiserState) -> None:
            text = f"{sum(outcome.seconds.values()):.1f} s"
            if len(outcome.survivors) < len(status.members):
                text += f", {sum_words(outcome.survivors, status.members)}"
            note_attempt(progress, outcome.round, outcome.attempt, outcome.code, text)

        yield observer


def _carry_on(service: ServiceHome, name: str, log_format: LogFormat) -> RunStatus:
    with _telling(status_of(find(service, name)), log_format) as observer:
        try:
            return carry_on(service, name, observer)
        except KeyboardInterrupt:
            again = f"arion run resume {name} --coordinator {service.path}"
            typer.echo(f"interrupted; go on with: {again}", err=True)
            raise typer.Exit(_INTERRUPTED) from None


def _print_end(status: RunStatus, as_json: bool) -> None:
    typer.echo(json.dumps(status_json(status)) if as_json else status_line(status))
    raise typer.Exit(0 if status.state == "finished" else NOT_FINISHED)
