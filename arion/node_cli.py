"""`arion node`: institutions join and serve; the coordinator's operator invites and approves."""

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

import client.app
from arion.coordinator_cli import Json, print_members
from arion.errors import user_errors
from arion.logs import LogFormat, LogFormatOption, set_up_logs
from arion.node_consent_cli import consent_app, members_command, pin_command
from client.agent import Agent
from client.config import IDENTITY_FILE
from client.doctor import RUNTIME
from client.host import Host
from client.membership import MembershipFile, collect, join, rotate
from client.node import CONSENT_FILE, Node
from client.seats import serve
from coordinator.service.approvals import Approval, sign_approval
from coordinator.service.home import ServiceHome
from coordinator.service.status import member_rows
from models.parallel import StoppedElsewhereError, World, processes
from privacy.consent import load_consent
from privacy.identity import IdentityKey, fingerprint

node_app = typer.Typer(no_args_is_help=True, help="Institutions' nodes, and who may connect.")
node_app.add_typer(consent_app, name="consent")
node_app.command("members")(members_command)
node_app.command("pin")(pin_command)

Coordinator = Annotated[Path, typer.Option(help="The coordinator's home, on its machine.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The member's name.")]
NodeHome = Annotated[Path, typer.Option(help="The node's home, on the institution's machine.")]


@node_app.command("invite")
def invite_command(name: Name, *, coordinator: Coordinator, role: str = "node") -> None:
    """Print an invitation, valid once and for seven days. For the operator.

    Example: arion node invite st-mary --coordinator srv
    """
    with user_errors(), closing(ServiceHome.open(coordinator)) as home:
        typer.echo(str(home.registry.invite(name, role)))


@node_app.command("list")
def list_command(*, coordinator: Coordinator, as_json: Json = False) -> None:
    """List members with their fingerprints. For the operator.

    Example: arion node list --coordinator srv
    """
    with user_errors(), closing(ServiceHome.open(coordinator)) as home:
        rows = member_rows(home)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        print_members(rows)


@node_app.command("approve")
def approve_command(
    name: Name,
    *,
    coordinator: Coordinator,
    operator: Annotated[
        Path | None, typer.Option(help="Your home as an operator, where two must approve.")
    ] = None,
) -> None:
    """Let a member that joined connect, after its fingerprint was compared. For the operator.

    Example: arion node approve st-mary --coordinator srv
    """
    with user_errors(), closing(ServiceHome.open(coordinator)) as home:
        waiting = home.registry.waiting(name)
        member = home.registry.approve(name, _approval(operator, home, waiting))
    own = fingerprint(member.identity_key)
    if member.status == "pending":
        typer.echo(f"{name} waits for another operator to approve: {own}")
    else:
        typer.echo(f"{name} may connect: {own}")


@node_app.command("rotate")
def rotate_command(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="The member, for operators.")] = "",
    *,
    coordinator: Annotated[Path | None, typer.Option(help="The coordinator's home.")] = None,
    home: Annotated[Path | None, typer.Option(help="The node's home, for institutions.")] = None,
) -> None:
    """Replace a node's connection key and certificate now, by its identity key.

    For operators, NAME --coordinator: old certificates are refused until the node has renewed,
    which it does by itself. For institutions, --home: the node makes a new key at once.

    Example: arion node rotate st-mary --coordinator srv
    """
    with user_errors():
        if bool(name and coordinator) == bool(home) or bool(name) != bool(coordinator):
            raise ValueError(
                "Expected NAME and --coordinator, or --home alone. See arion node rotate --help."
            )
        if home is not None:
            membership = rotate(home)
            typer.echo(f"{membership.name} has a new key and a new certificate")
            return
        assert coordinator is not None, "checked above"
        with closing(ServiceHome.open(coordinator)) as opened:
            opened.registry.rotate(name)
    typer.echo(f"{name} must renew: its older certificates are refused from its next call on")


@node_app.command("revoke")
def revoke_command(name: Name, *, coordinator: Coordinator) -> None:
    """Refuse a member from its next call on. For the operator.

    Example: arion node revoke st-mary --coordinator srv
    """
    with user_errors(), closing(ServiceHome.open(coordinator)) as home:
        home.registry.revoke(name)
        typer.echo(f"{name} is refused from its next call on")


@node_app.command("join")
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


@node_app.command("run")
def run_command(
    home: Annotated[Path, typer.Argument(metavar="HOME", help="The node's home.")],
    *,
    log_format: LogFormatOption = LogFormat.TEXT,
) -> None:
    """Serve the coordinator's requests within the consent, until stopped. For institutions.

    Example: arion node run node

    Example: torchrun --nproc-per-node 2 -m arion node run node   (processes that share training)
    """
    set_up_logs(log_format)
    with user_errors():
        try:
            with processes() as world:
                if world.is_first:
                    _serve(home, world)
                else:
                    serve(home, load_consent(home / CONSENT_FILE), world)
        except StoppedElsewhereError as error:  # that process has told the user
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            typer.echo("stopped")


def _serve(home: Path, world: World) -> None:
    """Answer the coordinator: alone, or for all processes of the node."""

    def answer(action: str, kind: str, body: bytes, payload: bytes) -> client.app.Question:
        return client.app.answer(home, RUNTIME, action, (kind, body, payload))

    try:
        if world.size > 1:
            client.app.keep(Node(home, RUNTIME, world))
        Agent(home, answer).run()
    finally:
        client.app.close_nodes()


@node_app.command("host")
def host_command(
    home: Annotated[Path, typer.Argument(metavar="HOME", help="The node's home.")],
    *,
    log_format: LogFormatOption = LogFormat.TEXT,
) -> None:
    """Keep the node for Flower's SuperNode on this machine, until stopped. For institutions.

    The SuperNode starts a process for each message, which hands it to the node that is kept here.
    The same user starts it beside this: flower-supernode --node-config 'home="/srv/node"' ...

    Example: arion node host /srv/node
    """
    set_up_logs(log_format)

    def answer(action: str, kind: str, body: bytes, payload: bytes) -> client.app.Question:
        return client.app.answer(home, client.app.FLOWER, action, (kind, body, payload))

    with user_errors():
        client.app.keep(Node(home, client.app.FLOWER))
        host = Host(home, answer)
        try:
            host.run()
        except KeyboardInterrupt:
            typer.echo("stopped")
        finally:
            host.stop()
            client.app.close_nodes()


def _approval(operator: Path | None, home: ServiceHome, waiting: Any) -> Approval | None:
    """Sign who waits, with the identity key in an operator's own home."""
    if operator is None:
        return None
    name = MembershipFile(operator).load().name
    key = IdentityKey.load(operator / IDENTITY_FILE)
    return sign_approval(key, name, home.settings.federation, waiting)
