"""`arion node run` and `host`: the institution's node, answering until it is stopped."""

from pathlib import Path
from typing import Annotated

import typer

import client.app
from arion.errors import user_errors
from arion.logs import LogFormat, LogFormatOption, set_up_logs
from client.agent import Agent
from client.config import CONSENT_FILE, load_node_config
from client.doctor import RUNTIME
from client.home_checks import check_places
from client.host import Host
from client.membership import MembershipFile
from client.node import Node
from client.seats import serve
from models.parallel import StoppedElsewhereError, World, processes
from privacy.consent import load_consent


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
        # what it cannot serve with is said at once, not when a run waits for it
        MembershipFile(home).load().check_renewable()
        check_places(load_node_config(home))
        client.app.keep(Node(home, RUNTIME, world))
        Agent(home, answer).run()
    finally:
        client.app.close_nodes()


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
        check_places(load_node_config(home))
        client.app.keep(Node(home, client.app.FLOWER))
        host = Host(home, answer)
        try:
            host.run()
        except KeyboardInterrupt:
            typer.echo("stopped")
        finally:
            host.stop()
            client.app.close_nodes()
