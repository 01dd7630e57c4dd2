"""Commands that are imported when they are called, and listed without that.

torch and what trains with it take seconds to load and 250 MB, which a list of commands and a
coordinator's service have no use for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar

import click
import typer
from typer.core import TyperGroup


@dataclass(frozen=True)
class Part:
    """A group of commands, or one command.

    Attributes:
        help: its line in the list of the group that it belongs to: the first of its own help.
        place: module and name of a Typer app, or of a command's function.
        more: commands that other modules add to the group, by name.

    """

    help: str
    place: str
    more: Mapping[str, str] = field(default_factory=dict)

    def load(self, name: str) -> click.Command:
        """Import it."""
        found = _named(self.place)
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(add_completion=False)
            alone.command(name)(found)
            return typer.main.get_command(alone)
        for added, place in self.more.items():
            if all(command.name != added for command in found.registered_commands):
                found.command(added)(_named(place))
        group = typer.main.get_group(found)  # without options on completion, which are arion's own
        group.name = name
        return group


def group_of(
    parts: Mapping[str, Part],
    callback: Callable[..., None] | None = None,
    **options: Any,
) -> typer.Typer:
    """Return a group of parts.

    Args:
        parts: by name, in the order of the list.
        callback: has the group's own options.
        options: of the Typer app.

    """
    kind = type("PartsGroup", (_PartsGroup,), {"parts": parts})
    group = typer.Typer(cls=kind, no_args_is_help=True, pretty_exceptions_enable=False, **options)
    group.callback()(callback or _nothing)
    return group


class _PartsGroup(TyperGroup):
    parts: ClassVar[Mapping[str, Part]]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The parts, in order."""
        return list(self.parts)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find one; nothing is imported yet."""
        return _Door(cmd_name, self.parts[cmd_name]) if cmd_name in self.parts else None


class _Door(click.Command):
    """A part that is imported when somebody goes in."""

    def __init__(self, name: str, part: Part) -> None:
        super().__init__(name, help=part.help)
        self._part = part

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Go on with the part itself, whose context names it from then on."""
        part = self._part.load(str(self.name))
        return part.make_context(info_name, args, parent, **extra)


def _nothing() -> None:
    """A group does nothing by itself."""


def _named(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(module), name)
