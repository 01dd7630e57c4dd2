"""`arion node join`: an institution's node joins a federation, and waits for approval."""

from pathlib import Path
from typing import Annotated

import typer

from arion.errors import user_errors
from client.config import IDENTITY_FILE
from client.membership import collect, join
from privacy.identity import IdentityKey, fingerprint

NodeHome = Annotated[Path, typer.Option(help="The node's home, on the institution's machine.")]


def join_command(
    host: Annotated[str, typer.Argument(metavar="HOST", help="The coordinator's host.")],
    invitation: Annotated[str, typer.Argument(metavar="INVITATION", help="As it was printed.")],
    *,
    home: NodeHome,
    port: Annotated[int, typer.Option(help="Port of members.")] = 7443,
    enrolment_port: Annotated[int, typer.Option(help="Port of joining.")] = 7444,
    wait: Annotated[float, typer.Option(help="Seconds to wait for approval.")] = 600.0,
) -> None:
    """Join a federation and wait for approval; again, it goes on waiting. For institutions.

    Example: arion node join arion.example.org arion1.… --home node
    """
    with user_errors():
        membership = join(home, host, (port, enrolment_port), invitation)
        own = fingerprint(IdentityKey.load(home / IDENTITY_FILE).public_key)
        typer.echo(f"joined as {membership.name}; this node's fingerprint is {own}")
        typer.echo("Read it to the coordinator's operator by telephone, and wait for approval.")
        membership = collect(home, wait)
    if not membership.certificate:
        typer.echo("not approved yet: give the same command again", err=True)
        raise typer.Exit(1)
    typer.echo(
        f"approved in {membership.federation!r}; the coordinator's key is "
        f"{fingerprint(bytes.fromhex(membership.coordinator_key))}"
    )
    typer.echo("Compare it with the operator before it goes into consent.toml.")
