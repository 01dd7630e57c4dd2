"""`arion privacy plan | calibrate | epsilon`: what runs cost, before they are made."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from arion.errors import user_errors
from arion.options import Json
from arion.planner import Outlook, Verdict, consider, plan_run, unit_of
from arion.run_file import RunFile, RunFileError, load_run_file
from privacy.consent import load_consent
from privacy.dp.accountant import AccountantError, calibrate_noise_multiplier, epsilon_after
from privacy.dp.plan import PrivateStep
from privacy.figures import at_most
from privacy.units import INSTITUTION, RECORD

Delta = Annotated[float, typer.Option(help="Delta of the whole schedule.")]
Rounds = Annotated[int, typer.Option(help="Releases of the schedule, T.", min=1)]
Sampling = Annotated[
    float, typer.Option(help="Chance q that a unit is drawn into a round; 1: an institution.")
]
Unit = Annotated[
    str | None,
    typer.Option(help="record, a field's name, or institution.", show_default="record"),
]
UnitsPerNode = Annotated[int, typer.Option(help="Privacy units that each member trains on.", min=1)]
Members = Annotated[int | None, typer.Option(help="Members; default: federation.nodes.")]
Length = Annotated[
    int, typer.Option(help="Coordinates of a release; 0 leaves rounding out.", min=0)
]


def calibrate_command(  # noqa: PLR0917  (its options are its interface)
    epsilon: Annotated[float, typer.Option(help="Epsilon that the schedule may cost.")],
    delta: Delta,
    rounds: Rounds,
    sampling: Sampling,
    unit: Unit = None,
    vector_length: Length = 0,
    as_json: Json = False,
) -> None:
    """Find the least noise multiplier that keeps a schedule within an epsilon.

    Example: arion privacy calibrate --epsilon 8 --delta 1e-6 --rounds 300 --sampling 0.01
    """
    with user_errors():
        _check_sampling(unit, sampling)
        noise = calibrate_noise_multiplier(
            epsilon, delta, sampling, rounds, vector_length=vector_length
        )
    _tell(as_json, {"noise_multiplier": noise}, f"noise_multiplier = {at_most(noise, 6)}")


def epsilon_command(  # noqa: PLR0917  (its options are its interface)
    noise_multiplier: Annotated[float, typer.Option(help="Noise over sensitivity, z.")],
    delta: Delta,
    rounds: Rounds,
    sampling: Sampling,
    unit: Unit = None,
    vector_length: Length = 0,
    as_json: Json = False,
) -> None:
    """Compute the epsilon of a schedule: the inverse of `calibrate`.

    Example: arion privacy epsilon --noise-multiplier 0.8 --delta 1e-5 --rounds 1000 --sampling 0.01
    """
    with user_errors():
        if not noise_multiplier > 0:
            raise AccountantError(
                f"Expected a noise multiplier > 0, got {noise_multiplier}. Without noise there is "
                "no epsilon."
            )
        _check_sampling(unit, sampling)
        step = PrivateStep(
            clipping_norm=1.0,
            noise_multiplier=noise_multiplier,
            sampling_probability=sampling,
            expected_batch=1.0,
            honest_survivors=1,
            releases=rounds,
            unit=unit or RECORD,
        )
        spent = epsilon_after(step, rounds, delta, vector_length=vector_length, contributors=1)
    _tell(
        as_json,
        {"epsilon": spent, "delta": delta},
        f"epsilon = {at_most(spent)} at delta = {delta:g}",
    )


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


def _check_sampling(unit: str | None, sampling: float) -> None:
    if unit == INSTITUTION and sampling != 1:
        raise AccountantError(
            f"Expected --sampling 1 for the unit institution, got {sampling}. A member takes part "
            "in every round: nothing is drawn that could make epsilon smaller."
        )


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


def _tell(as_json: bool, values: dict[str, Any], text: str) -> None:
    typer.echo(json.dumps(values) if as_json else text)
