"""`arion privacy audit`: the epsilon that is claimed beside the epsilon that an attack shows."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from arion.audit_mechanism import MechanismAudit, audit_mechanism
from arion.budget_cli import Json, Members, UnitsPerNode, members_of
from arion.errors import user_errors
from arion.planner import plan_run
from arion.run_file import load_run_file
from client.entropy import Entropy
from privacy.figures import at_least, at_most

REFUTED = 3
_TARGET = 1.0  # of the outlook's cohort, which an audit does not show


def audit_command(  # noqa: PLR0917  (its options are its interface)
    run_file: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run.")],
    units_per_node: UnitsPerNode,
    nodes: Members = None,
    canaries: Annotated[int, typer.Option(help="Canaries, m.", min=10, max=100_000)] = 10_000,
    confidence: Annotated[float, typer.Option(help="Of the lower bound.")] = 0.95,
    seed: Annotated[
        int | None, typer.Option(help="Repeat an audit; by default all is drawn anew.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Attack a run's releases with canaries, and set the bound beside the claim. Trains nothing.

    Sampling, noise, lattice and ring are those of a run; every release of the schedule is made.
    Exit code 3: the attack shows more than the run claims, which must not be run.

    Example: arion privacy audit run.toml --nodes 7 --units-per-node 1800
    """
    with user_errors():
        run = load_run_file(run_file, {})
        outlook = plan_run(
            run,
            nodes=members_of(run, nodes),
            units_per_node=units_per_node,
            unit="record",
            target=_TARGET,
        )
        audit = audit_mechanism(
            outlook.step,
            outlook.epsilon[-1][1],
            outlook.delta,
            canaries=canaries,
            confidence=confidence,
            entropy=Entropy(seed),
        )
    if as_json:
        typer.echo(json.dumps({**asdict(audit), "refuted": audit.is_refuted}, indent=1))
    else:
        _print(audit)
    raise typer.Exit(REFUTED if audit.is_refuted else 0)


def _print(audit: MechanismAudit) -> None:
    typer.echo(f"claimed epsilon  {at_most(audit.claim):>8} at delta = {audit.delta:g}")
    typer.echo(f"audited, at least{at_least(audit.bound):>8} at confidence {audit.confidence:g}")
    typer.echo(
        f"{audit.guesses.correct} of {audit.guesses.guessed} guesses about "
        f"{audit.guesses.canaries} canaries were right; all right would show {audit.most:.4f}"
    )
    if audit.is_refuted:
        typer.echo("REFUTED: the releases show more than is claimed. Do not run this.")
    elif audit.claim >= audit.most:
        typer.echo("note: so large a claim cannot be refuted by so many canaries at this delta")
