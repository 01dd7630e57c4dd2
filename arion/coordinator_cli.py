"""`arion coordinator`: a service that nodes of other machines enrol with and answer to."""

import asyncio
import json
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from arion.errors import user_errors
from arion.logs import LogFormat, LogFormatOption, set_up_logs
from arion.options import Json
from coordinator.service.database import check_database_url
from coordinator.service.home import ServiceHome, make_settings
from coordinator.service.probe import State, state_of, state_words
from coordinator.service.serve import Service
from coordinator.service.status import service_status
from coordinator.service.succession import take_over
from privacy.identity import fingerprint

coordinator_app = typer.Typer(no_args_is_help=True, help="The coordinator's service.")

Home = Annotated[Path, typer.Argument(metavar="HOME", help="The coordinator's home.")]


@coordinator_app.command("init")
def init_command(
    home: Home,
    *,
    federation: Annotated[str, typer.Option(help="Identifier; in every plan and consent.")],
    host: Annotated[list[str], typer.Option(help="Name or address that nodes dial.")],
    listen: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of members, under mutual TLS.")] = 7443,
    enrolment_port: Annotated[int, typer.Option(help="Port of joining, under TLS.")] = 7444,
    database: Annotated[str | None, typer.Option(help="URL of another database.")] = None,
    payloads: Annotated[
        str | None,
        typer.Option(help="URL of an object store for payloads, such as s3://bucket/arion."),
    ] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Loopback port of metrics.")] = None,
    approvals: Annotated[
        int, typer.Option(min=1, max=2, help="Operators that must approve a member.")
    ] = 1,
    follows: Annotated[
        Path | None,
        typer.Option(help="Home of the coordinator whose members go on with this one."),
    ] = None,
) -> None:
    """Make a coordinator's home: certificate authority, signing key, database.

    Example: arion coordinator init srv --federation hospitals --host arion.example.org
    """
    with user_errors():
        if database is not None:
            check_database_url(database)
        settings = make_settings(
            federation=federation,
            hosts=tuple(host),
            listen=listen,
            port=port,
            enrolment_port=enrolment_port,
            database=database,
            payloads=payloads,
            metrics_port=metrics_port,
            approvals=2 if approvals == 2 else 1,
        )

        def before() -> None:
            if follows is not None:
                typer.echo(f"{take_over(follows, home)} members may go on with this coordinator")

        with closing(ServiceHome.create(home, settings, before)) as made:
            typer.echo(f"coordinator of {federation!r} in {home}")
            typer.echo(f"signing key {fingerprint(made.key.public_key)}")
    typer.echo("Read that fingerprint to every institution by telephone; it goes into consents.")


@coordinator_app.command("serve")
def serve_command(home: Home, *, log_format: LogFormatOption = LogFormat.TEXT) -> None:
    """Serve until stopped; always under TLS.

    Example: arion coordinator serve srv
    """
    set_up_logs(log_format)
    with user_errors(), closing(ServiceHome.open(home)) as opened:
        try:
            asyncio.run(_serve(opened))
        except KeyboardInterrupt:
            typer.echo("stopped")


@coordinator_app.command("status")
def status_command(home: Home, *, as_json: Json = False) -> None:
    """Show whether it serves, who is a member, what waits and what the disk holds.

    Example: arion coordinator status srv --json
    """
    with user_errors(), closing(ServiceHome.open(home)) as opened:
        found = service_status(opened)
        words = state_words(opened, State(found["state"]))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(f"{found['federation']}  {found['fingerprint']}")
    typer.echo(words)
    typer.echo(
        f"{found['database']}, schema {found['schema']}; payloads {found['payload_bytes']:,} "
        f"bytes, free on the disk {found['disk_free_bytes']:,}"
    )
    print_members(found["members"], found["invitations"])


@coordinator_app.command("health")
def health_command(home: Home) -> None:
    """Ask the running service whether it does its work; exit code 1 where it does not.

    Example: arion coordinator health srv
    """
    with user_errors(), closing(ServiceHome.open(home)) as opened:
        state = state_of(opened)
        typer.echo(state_words(opened, state))
    raise typer.Exit(0 if state is State.SERVING else 1)


def print_members(rows: list[dict[str, Any]], invited: list[dict[str, str]]) -> None:
    """Print members and open invitations, one a line."""
    for row in rows:
        who = f"{row['name']:<24} {row['role']:<9} {row['status']:<8} {row['fingerprint']}"
        typer.echo(f"{who}  {_seen_words(row['seen'])}")
    for row in invited:
        typer.echo(f"{row['name']:<24} {row['role']:<9} invited  until {row['expires']}")
    if not rows and not invited:
        typer.echo("no members yet: arion node invite NAME --coordinator HOME")


def _seen_words(seen: float | None) -> str:
    """When a member last listened."""
    if seen is None:
        return "never seen"
    ago = max(0.0, time.time() - seen)
    units = ((86_400, "d"), (3_600, "h"), (60, "min"))
    return next(
        (f"seen {ago / size:.0f} {unit} ago" for size, unit in units if ago >= size), "here"
    )


async def _serve(home: ServiceHome) -> None:
    service = Service(home)
    try:  # also where Ctrl-C comes while it starts
        await service.start()
        await service.wait()
    finally:
        await service.stop()
