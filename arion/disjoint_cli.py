"""`arion privacy disjoint`: whether a node's data shares units with its other data sets."""

import json
from pathlib import Path
from typing import Annotated

import typer

from arion.errors import user_errors
from arion.options import Json
from client.config import CONSENT_FILE, NodeError, load_node_config
from client.training_records import training_records
from client.unit_keys import open_unit_keys
from privacy.consent import load_consent


def disjoint_command(
    home: Annotated[Path, typer.Argument(metavar="HOME", help="A node's home.")],
    as_json: Json = False,
) -> None:
    """Count the units of a node's data that belong to another data set; reads data, writes nothing.

    They are left out of runs on this one. The figures were computed from the data: keep them here.

    Example: arion privacy disjoint nodes/hospital-a
    """
    with user_errors():
        consent, config = load_consent(home / CONSENT_FILE), load_node_config(home)
        register = open_unit_keys(home, consent, config.fields.unit_field)
        if register is None:
            raise NodeError(
                f"Expected keep_data_sets_apart = true in {CONSENT_FILE}, got false: all runs of "
                "this node add up, whatever data they use."
            )
        units = {record.unit for record in training_records(config)}
        elsewhere = register.elsewhere(consent.data_set, units)
    if as_json:
        told = {"data_set": consent.data_set, "units": len(units), "elsewhere": elsewhere}
        typer.echo(json.dumps(told))
        return
    typer.echo(
        f"{elsewhere} of the {len(units)} units to train on in {consent.data_set!r} belong to "
        "another data set" + (", and are left out of its runs" if elsewhere else ": disjoint")
    )
    typer.echo("These figures were computed from the data: keep them here.")
