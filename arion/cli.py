"""The command `arion`: one front door, composed of the parts.

A part is imported when it is called: torch and what trains with it take seconds to load and 250 MB,
which a coordinator's service has no use for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import click
import typer
from typer.core import TyperGroup

from arion.memory import keep_freed_memory


@dataclass(frozen=True)
class Part:
    """A group of commands, or one command.

    Attributes:
        place: module and name of a Typer app, or of a command's function.
        more: commands that other modules add to the group, by name.

    """

    place: str
    more: Mapping[str, str] = field(default_factory=dict)

    def load(self, name: str) -> click.Command:
        """Import it."""
        found = _named(self.place)
        group = found if isinstance(found, typer.Typer) else typer.Typer()
        if group is not found:
            group.command(name)(found)
        for added, place in self.more.items():
            if all(command.name != added for command in group.registered_commands):
                group.command(added)(_named(place))
        command = typer.main.get_command(group)
        command.name = name
        return command


PARTS = {
    "coordinator": Part(
        "arion.coordinator_cli:coordinator_app",
        {
            "migrate": "arion.coordinator_upkeep_cli:migrate_command",
            "backup": "arion.coordinator_upkeep_cli:backup_command",
            "restore": "arion.coordinator_upkeep_cli:restore_command",
        },
    ),
    "node": Part("arion.node_cli:node_app", {"doctor": "arion.node_doctor_cli:doctor_command"}),
    "auditor": Part("arion.auditor_cli:auditor_app"),
    "run": Part("arion.run_cli:run_app"),
    "model": Part("arion.model_cli:model_app"),
    "privacy": Part("arion.privacy_cli:privacy_app"),
    "simulate": Part("arion.simulate_cli:simulate_command"),
}


class FrontDoor(TyperGroup):
    """Loads the part that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The parts, in order."""
        return list(PARTS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one."""
        return PARTS[cmd_name].load(cmd_name) if cmd_name in PARTS else None


app = typer.Typer(
    cls=FrontDoor,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Federated learning of sparse language models on private text.",
)


@app.callback()
def front_door() -> None:
    """Federated learning of sparse language models on private text."""


def main() -> None:
    """Run the command line."""
    keep_freed_memory()
    app()


def _named(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(module), name)
