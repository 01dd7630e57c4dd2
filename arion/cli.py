"""The command `arion`: one front door, composed of the parts."""

import typer

from arion.coordinator_cli import coordinator_app
from arion.coordinator_upkeep_cli import backup_command, migrate_command, restore_command
from arion.expert_cli import expert_app
from arion.expert_private_cli import train_private_command
from arion.model_cli import model_app
from arion.node_cli import node_app
from arion.node_doctor_cli import doctor_command
from arion.privacy_cli import privacy_app
from arion.run_cli import run_app
from arion.simulate_cli import simulate_command

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Federated learning of sparse language models on private text.",
)
app.add_typer(coordinator_app, name="coordinator")
app.add_typer(node_app, name="node")
app.add_typer(run_app, name="run")
app.add_typer(model_app, name="model")
app.add_typer(privacy_app, name="privacy")
coordinator_app.command("migrate")(migrate_command)
coordinator_app.command("backup")(backup_command)
coordinator_app.command("restore")(restore_command)
node_app.command("doctor")(doctor_command)
app.command("simulate")(simulate_command)
expert_app.command("train-private")(train_private_command)


def main() -> None:
    """Run the command line."""
    app()
