"""The command `arion`: one front door, composed of the parts."""

from importlib.metadata import version
from typing import Annotated

import typer

from arion.memory import keep_freed_memory
from arion.parts import Part, group_of

PARTS = {
    "coordinator": Part(
        "The coordinator's service.",
        "arion.coordinator_cli:coordinator_app",
        {
            "migrate": "arion.coordinator_upkeep_cli:migrate_command",
            "backup": "arion.coordinator_upkeep_cli:backup_command",
            "restore": "arion.coordinator_upkeep_cli:restore_command",
            "replace-authority": "arion.coordinator_upkeep_cli:replace_authority_command",
        },
    ),
    "node": Part(
        "Institutions' nodes, and who may connect.",
        "arion.node_cli:node_app",
    ),
    "auditor": Part(
        "Auditors, who join as nodes do (arion node join) and see what was written down.",
        "arion.auditor_cli:auditor_app",
    ),
    "run": Part("Runs over the service. For the operator.", "arion.run_cli:run_app"),
    "model": Part("Look at models, bring them in, run them.", "arion.model_cli:model_app"),
    "privacy": Part(
        "Plan budgets, check ledgers, explain consents, offline.", "arion.privacy_cli:privacy_app"
    ),
    "simulate": Part(
        "Simulate a federation in one process: text in, model, ledger and report out.",
        "arion.simulate_cli:simulate_command",
    ),
}


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(version("arion-federated"))
        raise typer.Exit


def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """What the front door itself is asked."""


app = group_of(
    PARTS, _options, help="Federated learning of sparse language models on private text."
)


def main() -> None:
    """Run the command line."""
    keep_freed_memory()
    app()
