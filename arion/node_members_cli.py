"""`arion node invite`, `list`, `approve`, `revoke`, `rotate`: who may connect. For operators."""

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from arion.coordinator_cli import print_members
from arion.errors import user_errors
from arion.options import Json
from client.config import IDENTITY_FILE
from client.membership import MembershipFile, rotate
from coordinator.service.approvals import Approval, sign_approval
from coordinator.service.home import ServiceHome
from coordinator.service.status import invitation_rows, member_rows
from privacy.identity import IdentityKey, fingerprint

Coordinator = Annotated[Path, typer.Option(help="The coordinator's home, on its machine.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The member's name.")]


def invite_command(name: Name, *, coordinator: Coordinator, role: str = "node") -> None:
    """Print an invitation, valid once and for seven days. For the operator.

    Example: arion node invite st-mary --coordinator srv
    """
    with user_errors(), closing(ServiceHome.open(coordinator)) as home:
        typer.echo(str(home.registry.invite(name, role)))


def list_command(*, coordinator: Coordinator, as_json: Json = False) -> None:
    """List members with their fingerprints. For the operator.

    Example: arion node list --coordinator srv
    """
    with user_errors(), closing(ServiceHome.open(coordinator)) as home:
        rows, invited = member_rows(home), invitation_rows(home)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        print_members(rows, invited)


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


def revoke_command(name: Name, *, coordinator: Coordinator) -> None:
    """Refuse a member from its next call on, and withdraw open invitations. For the operator.

    Example: arion node revoke st-mary --coordinator srv
    """
    with user_errors(), closing(ServiceHome.open(coordinator)) as home:
        withdrawn = home.registry.revoke(name)
        if withdrawn:
            typer.echo(f"{withdrawn} open invitations of {name} were withdrawn")
        if any(member.name == name for member in home.registry.members()):
            typer.echo(f"{name} is refused from its next call on")


def _approval(operator: Path | None, home: ServiceHome, waiting: Any) -> Approval | None:
    """Sign who waits, with the identity key in an operator's own home."""
    if operator is None:
        return None
    name = MembershipFile(operator).load().name
    key = IdentityKey.load(operator / IDENTITY_FILE)
    return sign_approval(key, name, home.settings.federation, waiting)
