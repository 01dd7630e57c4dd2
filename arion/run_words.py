"""Runs over the service in words, and as JSON."""

import json
from collections.abc import Collection, Sequence
from typing import Any

import typer

from arion.run_order import RunOrder
from arion.runs import RunStatus, Waiting
from coordinator.attempts import Attempt
from privacy.figures import at_most

ACTIONS = {
    "query.recall": "heads of the ledger",
    "query.keys": "keys of an epoch",
    "train.upload": "training",
    "query.survivors": "who is in the sum",
    "query.unmask": "opening the sum",
    "query.head": "heads of the ledger",
    "query.countersign": "signatures of the ledger",
    "query.close": "closing the run",
}
"""What members are asked in a run, for people."""
_NAMED = 3


def attempt_json(attempt: Attempt) -> dict[str, Any]:
    """What programs are told of an attempt."""
    return {
        "round": attempt.round,
        "attempt": attempt.attempt,
        "phase": str(attempt.phase),
        "survivors": list(attempt.survivors),
        "code": attempt.code,
    }


def status_json(status: RunStatus) -> dict[str, Any]:
    """What programs are told of a run."""
    attempts = [attempt_json(attempt) for attempt in status.attempts]
    waiting = status.waiting and {**vars(status.waiting), "missing": list(status.waiting.missing)}
    return {**vars(status), "attempts": attempts, "waiting": waiting}


def status_line(status: RunStatus) -> str:
    """A run in one line, for people."""
    reason = f"  {status.reason}" if status.state == "stopped" else ""
    reason = f"  {waiting_words(status.waiting)}" if status.waiting else reason
    return f"{status.name:<24} {status.state:<10} {status.round}/{status.rounds} rounds{reason}"


def sum_words(survivors: Collection[str], members: Collection[str]) -> str:
    """Who is in a round's sum and who is not, for people."""
    missing = sorted(set(members) - set(survivors))
    if not missing:
        return f"{len(survivors)} members in the sum"
    return f"{len(survivors)} of {len(members)} members in the sum, without {_some(missing)}"


def waiting_words(waiting: Waiting) -> str:
    """What members are asked and who is still to answer, for people."""
    what = ACTIONS.get(waiting.action, waiting.action)
    if not waiting.missing:
        return f"{what}: all {waiting.asked} answered"
    answered = waiting.asked - len(waiting.missing)
    return f"{what}: {answered} of {waiting.asked} answered, waits for {_some(waiting.missing)}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


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
