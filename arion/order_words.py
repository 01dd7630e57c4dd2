"""What a run would do and cost, in words."""

import json
from typing import Any

import typer

from arion.run_order import RunOrder
from privacy.figures import at_most


def print_order(order: RunOrder, as_json: bool) -> None:
    """Print what a run would do and cost."""
    plan = order.plan
    if as_json:
        typer.echo(json.dumps(plan, indent=2))
        return
    typer.echo(
        f"{plan['run']}: {plan['rounds']} rounds of {plan['training']} training, "
        f"{plan['releases']} releases at most, {plan['vector_length']:,} coordinates"
    )
    typer.echo(
        f"{len(plan['members'])} members, at least {plan['n_min']} in a sum, {plan['colluders']} "
        f"may collude, {plan['may_be_missing']} may be missing in a round; unit {plan['unit']}"
    )
    typer.echo(
        f"sampling {plan['sampling_probability']:.4g}, batch {plan['expected_batch']:g}, "
        f"noise multiplier {plan['noise_multiplier']:g}"
    )
    typer.echo(
        f"each node downloads {plan['node_download_bytes']:,} and uploads "
        f"{plan['node_upload_bytes']:,} bytes; all together {plan['total_bytes']:,}"
    )
    typer.echo(
        f"memory, on processors: about {plan['node_memory_bytes'] / 1e9:.1f} GB at each node, and "
        f"{plan['driver_memory_bytes'] / 1e9:.1f} GB where the run is driven"
    )
    for name, member in plan["members"].items():
        typer.echo(f"{name:<24} {_charge_words(member, plan['delta'])}")


def _charge_words(member: dict[str, Any], delta: float) -> str:
    if member["epsilon"] is None:
        return "no noise: no epsilon holds, and consents must allow it"
    together = member["epsilon_with_earlier_runs"]
    return (
        f"{member['units']} units, epsilon {at_most(member['epsilon'])} at delta {delta:g}; with "
        f"earlier runs {'unbounded' if together is None else at_most(together)}; "
        f"{at_most(member['epsilon_if_all_others_collude'])} if all others collude"
    )
