"""From a run file and the counts of a corpus to the mechanism: the frozen step of every round."""

import math
from dataclasses import dataclass
from pathlib import Path

from arion.federation import Budget
from arion.run_file import FederationSection, RunFile, RunFileError
from models.folders import is_ours
from models.training_settings import Recipe
from privacy.dp.accountant import calibrate_noise_multiplier
from privacy.dp.plan import PrivateStep
from privacy.secagg.parameters import (
    LARGEST_COMPLETE,
    SMALLEST_COHORT,
    choose_parameters,
    failure_of,
    quorum_for,
)
from privacy.units import INSTITUTION, RECORD

_SEQUENCES_PER_UNIT = 4
_LIKELY = 3.0  # standard deviations of drop-outs that the defaults allow for


@dataclass(frozen=True)
class Cohort:
    """Who must be in a sum.

    Attributes:
        nodes: members of a group, n; without groups, of the federation.
        n_min: least number in a sum.
        colluders: c.
        groups: g, each summed for itself.

    """

    nodes: int
    n_min: int
    colluders: int
    groups: int = 1

    @property
    def members(self) -> int:
        """Members of all groups."""
        return self.nodes * self.groups

    @property
    def is_sparse(self) -> bool:
        """Whether a sum is over a random graph."""
        return self.nodes > LARGEST_COMPLETE

    @property
    def failure(self) -> float:
        """Part of delta that is for a graph or a committee that fails."""
        return failure_of(self.nodes)


def choose_cohort(section: FederationSection, nodes: int) -> Cohort:
    """Take n_min from the run file, or the largest that drop-outs will rarely miss.

    Args:
        section: what the user chose.
        nodes: members of the federation.

    Returns:
        The cohort of one sum: a group's, where there are several.

    Raises:
        RunFileError: n_min out of range, more drop-outs than a quorum can bear, groups that do not
            divide the nodes, or larger ones than the run file allows.
        ParameterError: no random graph that keeps its bound.

    """
    nodes, uneven = divmod(nodes, section.groups)
    if uneven or nodes < SMALLEST_COHORT:
        raise RunFileError(
            f"Expected federation.groups that divide the nodes into equal groups of at least "
            f"{SMALLEST_COHORT}, got {section.groups}. Change [federation]."
        )
    if nodes > LARGEST_COMPLETE and not section.sparse_graph:
        raise RunFileError(
            f"Expected at most {LARGEST_COMPLETE} members in a group, got {nodes}. Make groups "
            "(federation.groups), or allow a sum over a random graph, whose privacy fails with "
            "probability 2^-40 (federation.sparse_graph = true)."
        )
    colluders = section.colluders
    n_min = section.n_min
    if n_min is None:
        spread = math.sqrt(nodes * section.drop * (1 - section.drop))
        missing = math.ceil(nodes * section.drop + _LIKELY * spread) if section.drop else 0
        most = nodes - quorum_for(nodes, colluders)
        n_min = nodes - min(missing, most)
    if not colluders < n_min <= nodes:
        raise RunFileError(
            f"Expected colluders < n_min <= {nodes} nodes, got colluders {colluders} and n_min "
            f"{n_min}. Change [federation]."
        )
    choose_parameters(nodes, colluders, nodes - n_min)  # there are some
    return Cohort(nodes, n_min, colluders, section.groups)


def choose_recipe(run: RunFile, unit: str, base: Path) -> Recipe:
    """Say how nodes train locally.

    Args:
        run: what the user chose. unit: of privacy.
        base: model folder that the run starts from, or the name of a preset.

    """
    training = run.training
    cap = training.sequences_per_unit or (1 if unit == RECORD else _SEQUENCES_PER_UNIT)
    return Recipe(
        kind=training.kind or ("lora" if base.is_dir() and not is_ours(base) else "full"),
        lora_rank=training.lora_rank,
        lora_alpha=training.lora_alpha,
        sequence_length=training.sequence_length,
        sequences_per_unit=cap,
    )


def spare_releases(run: RunFile, cohort: Cohort) -> int:
    """How many releases the schedule keeps for new attempts."""
    if run.privacy.spare_releases is not None:
        return run.privacy.spare_releases
    drop = run.federation.drop
    if not drop:
        return 0
    fails = _chance_below(cohort.nodes, cohort.n_min, 1 - drop) ** cohort.groups
    expected = run.training.rounds * fails / (1 - fails)
    return 2 + math.ceil(expected + _LIKELY * math.sqrt(expected))


def choose_step(
    run: RunFile, unit: str, units: int, cohort: Cohort, vector_length: int
) -> PrivateStep:
    """Calibrate the mechanism.

    Args:
        run: budget, batch, rounds.
        unit: name of the privacy unit.
        units: training units over all nodes; gives the sampling probability. Where the unit is an
            institution, the cohort does: each member is one, and takes part in every round.
        cohort: who must be in a sum.
        vector_length: coordinates of a release.

    """
    probability = min(1.0, run.training.expected_batch / units)
    if unit == INSTITUTION:
        units, probability = cohort.members, 1.0
    releases = run.training.rounds + spare_releases(run, cohort)
    noise_multiplier = 0.0
    if run.privacy.enabled:
        noise_multiplier = calibrate_noise_multiplier(
            run.privacy.epsilon,
            run.privacy.delta - cohort.failure,
            probability,
            releases,
            vector_length=vector_length,
            contributors=cohort.members,
        )
    return PrivateStep(
        clipping_norm=run.privacy.clipping_norm,
        clipping=run.privacy.clipping,
        noise_multiplier=noise_multiplier,
        sampling_probability=probability,
        expected_batch=probability * units,
        honest_survivors=cohort.n_min - cohort.colluders,
        releases=releases,
        unit=unit,
        ring_bits=run.federation.ring_bits if run.privacy.enabled else 32,
    )


def budget_of(run: RunFile) -> Budget:
    """What the simulated consents allow."""
    return Budget(run.privacy.epsilon if run.privacy.enabled else None, run.privacy.delta)


def _chance_below(nodes: int, n_min: int, stays: float) -> float:
    """Chance that fewer than n_min of the nodes stay."""
    return sum(math.comb(nodes, k) * stays**k * (1 - stays) ** (nodes - k) for k in range(n_min))
