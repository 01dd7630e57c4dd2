"""From RUN.toml and the members of a service to a run's settings, and what it will cost them.

A coordinator sees no data: the sampling rate comes from the units that members *declare*, and
noise and charge follow from it. A member that holds another number of units is protected all the
same, as its node draws each unit at the rate of the plan.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arion.mechanism import choose_cohort, choose_recipe, choose_step
from arion.planner import unit_of
from arion.run_file import RunFile, RunFileError
from coordinator.errors import RunError
from coordinator.settings import RunSettings
from models.folders import shape_of
from models.footprint import driver_bytes, node_bytes, trained_numbers
from privacy.dp.accountant import epsilon_after, epsilon_if_all_others_collude
from privacy.secagg.parameters import choose_parameters
from privacy.units import INSTITUTION

_WORD_BITS = 8
_VECTOR_BYTES = 4


@dataclass(frozen=True)
class RunOrder:
    """A run before it is submitted.

    Attributes:
        settings: what the coordinator will carry out; its base_model is where it lies now.
        units: units that members declared; empty where each member is one.
        plan: what people and programs are told of it, as JSON.

    """

    settings: RunSettings
    units: Mapping[str, int]
    plan: dict[str, Any]


def order_run(
    run: RunFile,
    name: str,
    federation: str,
    known: Mapping[str, bytes],
    earlier: Collection[Mapping[str, Any]] = (),
) -> RunOrder:
    """Work out what a run file asks of a federation's members.

    Args:
        run: the run file.
        name: the run's name.
        federation: identifier.
        known: identity keys of the members that were approved, by name.
        earlier: plans of the runs that this coordinator has begun.

    Raises:
        RunFileError, RunError, AccountantError: the message says which key to change.

    """
    base = _base_of(run)
    members = _members_of(run, known)
    unit = unit_of(run, run.service.unit)
    units = _units_of(run, members, unit)
    cohort = choose_cohort(run.federation, len(members))
    recipe = choose_recipe(run, unit, base)
    model = shape_of(base)
    length = trained_numbers(model, recipe)
    step = choose_step(run, unit, sum(units.values()), cohort, length)
    settings = RunSettings(
        federation=federation,
        run=name,
        members={member: known[member].hex() for member in members},
        groups=cohort.groups,
        n_min=cohort.n_min,
        colluders=cohort.colluders,
        rounds=run.training.rounds,
        step=step,
        recipe=recipe,
        optimiser=run.training.optimiser(run.training.learning_rate),
        base_model=base.resolve(),
        plausible_batches=run.federation.plausible_batches,
        runtime="arion-grpc",
        deadline_s=run.service.deadline_s,
    )
    charge = _charge(run, settings, length)
    memory = {
        "node_memory_bytes": node_bytes(model, recipe),
        "driver_memory_bytes": driver_bytes(model, recipe),
    }
    plan = _plan_json(settings, units, length, charge, earlier) | memory
    return RunOrder(settings, units, plan)


def _base_of(run: RunFile) -> Path:
    base = Path(run.model.base)
    if not base.is_dir():
        raise RunFileError(
            f"Expected a model folder as model.base, got {run.model.base!r}. Every node starts "
            "from the same folder: make one (arion model pretrain, arion model import) and name it."
        )
    return base


def _members_of(run: RunFile, known: Mapping[str, bytes]) -> tuple[str, ...]:
    """Return who takes part, sorted."""
    asked = run.service.members
    if strangers := sorted(set(asked or ()) - set(known)):
        raise RunError(
            f"Expected members that were approved, got {', '.join(strangers)} in service.members. "
            "See arion node list."
        )
    members = tuple(sorted(known if asked is None else asked))
    if run.federation.nodes not in (None, len(members)):
        raise RunError(
            f"Expected federation.nodes = {len(members)}, as many as take part, got "
            f"{run.federation.nodes}. Leave it out, or name service.members."
        )
    return members


def _units_of(run: RunFile, members: Collection[str], unit: str) -> dict[str, int]:
    """Return the declared units by member; where a member is one itself, nothing is declared."""
    declared = run.service.units
    if strangers := sorted(set(declared) - set(members)):
        raise RunError(
            f"Expected units of members that take part, got some of {', '.join(strangers)} in "
            "service.units. See arion node list."
        )
    if unit == INSTITUTION:
        return dict.fromkeys(members, 1)
    if missing := sorted(set(members) - set(declared)):
        raise RunError(
            f"Expected the number of units that each member declares, got none of "
            f"{', '.join(missing)}. Ask them, then add service.units or --units NAME=COUNT."
        )
    return {member: declared[member] for member in members}


@dataclass(frozen=True)
class _Charge:
    """What each member is charged; None where there is no noise."""

    epsilon: float | None
    if_all_others_collude: float | None
    delta: float


def _charge(run: RunFile, settings: RunSettings, length: int) -> _Charge:
    if not run.privacy.enabled:
        return _Charge(None, None, run.privacy.delta)
    step, delta = settings.step, run.privacy.delta
    spent = epsilon_after(
        step,
        step.releases,
        delta - settings.failure,
        vector_length=length,
        contributors=len(settings.members),
    )
    return _Charge(spent, epsilon_if_all_others_collude(step, delta, vector_length=length), delta)


def _plan_json(
    settings: RunSettings,
    units: Mapping[str, int],
    length: int,
    charge: _Charge,
    earlier: Collection[Mapping[str, Any]],
) -> dict[str, Any]:
    size = len(settings.members) // settings.groups
    chosen = choose_parameters(size, settings.colluders, size - settings.n_min)
    step, count = settings.step, len(settings.members)
    down = _VECTOR_BYTES * length
    up = math.ceil(length * step.ring_bits / _WORD_BITS)
    return {
        "run": settings.run,
        "federation": settings.federation,
        "rounds": settings.rounds,
        "releases": step.releases,
        "n_min": settings.n_min,
        "colluders": settings.colluders,
        "groups": settings.groups,
        "quorum": chosen.quorum,
        "may_be_missing": size - max(settings.n_min, chosen.quorum),
        "unit": step.unit,
        "sampling_probability": step.sampling_probability,
        "expected_batch": step.expected_batch,
        "clipping_norm": step.clipping_norm,
        "noise_multiplier": step.noise_multiplier,
        "delta": charge.delta,
        "training": settings.recipe.kind,
        "vector_length": length,
        "node_download_bytes": down * settings.rounds,
        "node_upload_bytes": up * settings.rounds,
        "total_bytes": (down + up) * settings.rounds * count,
        "deadline_s": settings.deadline_s,
        "members": {
            name: {
                "units": units[name],
                "epsilon": charge.epsilon,
                "epsilon_if_all_others_collude": charge.if_all_others_collude,
                "epsilon_with_earlier_runs": _with_earlier(name, charge.epsilon, earlier),
            }
            for name in settings.members
        },
    }


def _with_earlier(
    name: str, epsilon: float | None, earlier: Collection[Mapping[str, Any]]
) -> float | None:
    """Add what a member's earlier runs were charged, each whole (Dwork and Roth 2014, 3.16)."""
    charged = [plan["members"][name]["epsilon"] for plan in earlier if name in plan["members"]]
    if epsilon is None or None in charged:
        return None
    return float(epsilon + sum(charged))
