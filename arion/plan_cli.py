"""`arion privacy plan`: what a run costs, before it is made."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from arion.budget_cli import Unit
from arion.errors import user_errors
from arion.options import Json
from arion.planner import Outlook, Verdict, consider, plan_run, unit_of
from arion.run_file import RunFile, RunFileError, load_run_file
from privacy.consent import load_consent
from privacy.figures import at_most

UnitsPerNode = Annotated[int, typer.Option(help="Privacy units that each member trains on.", min=1)]
Members = Annotated[int | None, typer.Option(help="Members; default: federation.nodes.")]


def plan_command(  # noqa: PLR0917  (its options are its interface)
    run_file: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run.")],
    units_per_node: UnitsPerNode,
    nodes: Members = None,
    unit: Unit = None,
    consent: Annotated[
        list[Path] | None, typer.Option(help="A consent.toml to hold the run against; repeatable.")
    ] = None,
    target: Annotated[
        float, typer.Option(help="Noise-to-signal ratio to find the cohort for.", min=1e-6)
    ] = 1.0,
    as_json: Json = False,
) -> None:
    """Work out what a run costs and how noisy it is, before anyone consents. Reads no data.

    Exit code 1: a given consent would refuse the run.

    Example: arion privacy plan run.toml --nodes 7 --units-per-node 1800 --consent a/consent.toml
    """
    with user_errors():
        run = load_run_file(run_file, {})
        outlook = plan_run(
            run,
            nodes=members_of(run, nodes),
            units_per_node=units_per_node,
            unit=unit_of(run, unit),
            target=target,
        )
        verdicts = {str(path): consider(outlook, load_consent(path)) for path in consent or ()}
    if as_json:
        found = {path: asdict(verdict) for path, verdict in verdicts.items()}
        typer.echo(json.dumps({**_outlook_json(outlook), "consents": found}, indent=1))
    else:
        _print_outlook(outlook, verdicts)
    raise typer.Exit(1 if any(verdict.refused for verdict in verdicts.values()) else 0)


def members_of(run: RunFile, nodes: int | None) -> int:
    """Return how many members a run has, by the option or by its file."""
    members = nodes or run.federation.nodes
    if members is None:
        raise RunFileError(
            "Expected the number of members, got neither --nodes nor federation.nodes. "
            "Give --nodes."
        )
    return members


def _outlook_json(outlook: Outlook) -> dict[str, Any]:
    told = asdict(outlook)
    return {
        **told,
        "step": outlook.step.model_dump(),
        "epsilon": [{"rounds": rounds, "epsilon": value} for rounds, value in outlook.epsilon],
    }


def _print_outlook(outlook: Outlook, verdicts: dict[str, Verdict]) -> None:
    step, cohort = outlook.step, outlook.cohort
    groups = f" in {cohort.groups} groups" if cohort.groups > 1 else ""
    typer.echo(
        f"{cohort.members} members{groups}, at least {cohort.n_min} in a sum, "
        f"{cohort.colluders} may collude; unit {step.unit}"
    )
    typer.echo(
        f"noise multiplier {step.noise_multiplier:g}, sampling {step.sampling_probability:.4g}, "
        f"batch {step.expected_batch:g}, {outlook.vector_length:,} coordinates"
    )
    for rounds, value in outlook.epsilon:
        typer.echo(f"epsilon after {rounds:>6} releases  {at_most(value):>8}")
    typer.echo(f"  the last is charged, whole, at delta = {outlook.delta:g}, before the first")
    collude = at_most(outlook.epsilon_if_all_others_collude)
    typer.echo(f"epsilon if all others collude    {collude:>8}")
    typer.echo(f"releases until the run's epsilon is spent: {outlook.rounds_in_budget}")
    typer.echo(
        f"noise to signal {outlook.noise_to_signal:.3g}; at most {outlook.target:g} takes "
        f"{outlook.members_needed} such members"
    )
    for path, verdict in verdicts.items():
        if not verdict.refused:
            _print_agreement(path, verdict, step.releases)
        for reason in verdict.refused:
            typer.echo(f"{path}: refuses by {reason}")


def _print_agreement(path: str, verdict: Verdict, releases: int) -> None:
    if verdict.accountant == "filter":
        typer.echo(
            f"{path}: agrees; its filter holds {verdict.releases_by_filter} such releases in the "
            "data's life"
        )
        return
    typer.echo(f"{path}: agrees; {verdict.runs_in_life} such runs in the data's life")
    typer.echo(
        f'  {verdict.runs_in_life * releases} releases; a Rényi filter (accountant = "filter") '
        f"would hold {verdict.releases_by_filter}"
    )
