"""An institution's order to train and release experts of its own, and whether it may.

No coordinator is asked: the institution writes the job itself, its consent and its budget decide.
"""

import hashlib
from datetime import date
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from models.training_settings import OptimiserSettings
from privacy.budget_clauses import check_expiry, check_life_budget, require, run_delta
from privacy.canonical import canonical_bytes
from privacy.consent import Consent
from privacy.dp.local_plan import LocalPlan
from privacy.round_plan import PlanCode, PlanRefused

SIMULATE = "simulate"
_DELTA_UNITS = 10**15

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Statement = Annotated[str, StringConstraints(min_length=1, max_length=4000)]
Count = Annotated[int, Field(ge=1, lt=2**53)]


class ExpertsJob(BaseModel):
    """All that decides how a module is trained, but the data and the randomness.

    Attributes:
        run: the run in the ledger that is charged; it makes one release.
        owner: whose experts they are: the node's own name.
        base_digest: `model_digest` of the frozen model.
        public_digest: of the public tokens that router rows are calibrated on.
        sources: experts of the base that the owned ones start as copies of; a public choice.
        train_rows: whether router rows are trained too, after the embedding gave them.
        gain, margin: see `models.owned.router_rows`.
        sequence_length, sequences_per_unit: see `models.training_settings.Recipe`.
        optimiser: Adam on the noised sums.
        trainable: (tensor name, element count) in the vector's order.
        plan: the mechanism.
        delta_1e15: delta of the claim, in units of 1e-15.
        seeded: noise from a seed that others know; simulations only.
        data, licence: what the card says.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    run: Text
    owner: Name
    base_digest: Digest
    public_digest: Digest
    sources: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    train_rows: bool
    gain: float = Field(gt=0)
    margin: float
    sequence_length: Count
    sequences_per_unit: Count
    optimiser: OptimiserSettings
    trainable: tuple[tuple[str, Count], ...] = Field(min_length=1)
    plan: LocalPlan
    delta_1e15: int = Field(ge=1, lt=_DELTA_UNITS)
    seeded: bool
    data: Statement
    licence: Statement

    @property
    def delta(self) -> float:
        """Delta of the claim."""
        return self.delta_1e15 / _DELTA_UNITS

    def digest(self) -> bytes:
        """SHA-256 of the canonical job: what debits and refusals name."""
        return hashlib.sha256(canonical_bytes(self.model_dump(mode="json"))).digest()


def verify_job(
    job: ExpertsJob,
    consent: Consent,
    *,
    node: str,
    runtime: str,
    spent: tuple[float, float],
    today: date,
) -> float:
    """Decide whether a module may be trained and leave.

    1. Owned experts may leave. 2. The owner is this node. 3. The unit is the consent's. 4. Every
    tensor may be trained, once, and the plan is for all of them. 5. Seeded noise only in a
    simulation with a clause for it. 6. Delta is within one run's share. 7. The plan's epsilon is
    within one run's, and with delta within what is left of the life's budget. 8. The consent has
    not expired. That both mechanisms have noise of their own is the plan's own check, so the figure
    holds whoever colludes, and `epsilon_if_all_others_collude` is never below `epsilon_per_run`.

    Args:
        job: what is to be done.
        consent: this institution's consent.
        node: this node's name.
        runtime: where this node really runs.
        spent: (epsilon, delta) that all other runs were charged over the data's life.
        today: the day, for the clause `expires`.

    Returns:
        Epsilon of the whole job at `job.delta`: what has to be charged.

    Raises:
        PlanRefused: the first check that fails.

    """
    _check_owner(job, consent, node)  # 1, 2
    _check_scope(job, consent, runtime)  # 3-5
    epsilon = _check_run_budget(job, consent)  # 6, 7
    check_life_budget(epsilon, job.delta, consent, spent)  # 7
    check_expiry(consent, today)  # 8
    return epsilon


def _check_owner(job: ExpertsJob, consent: Consent, node: str) -> None:
    require(
        consent.owned_experts_may_leave,
        PlanCode.OWNED_EXPERTS,
        "owned_experts_may_leave",
        "a consent under which experts trained here may leave, got one that keeps them here",
    )
    require(
        job.owner == node,
        PlanCode.OWNED_EXPERTS,
        "members",
        f"the owner to be this node, {node!r}, got {job.owner!r}",
    )


def _check_scope(job: ExpertsJob, consent: Consent, runtime: str) -> None:
    require(
        job.plan.step.unit == consent.unit,
        PlanCode.WRONG_UNIT,
        "unit",
        f"unit {consent.unit!r}, got {job.plan.step.unit!r}",
    )
    names = [name for name, _ in job.trainable]
    total = sum(size for _, size in job.trainable)
    require(
        consent.allows_trainable(names)
        and len(set(names)) == len(names)
        and job.plan.vector_length == total,
        PlanCode.NOT_TRAINABLE,
        "trainable",
        f"distinct tensors that match {consent.trainable}, of {job.plan.vector_length} elements "
        f"in all, got {len(names)} tensors of {total}",
    )
    require(
        not job.seeded or (consent.allow_seeded_simulation and runtime == SIMULATE),
        PlanCode.SEEDED,
        "allow_seeded_simulation",
        f"noise from this node's own entropy, got a seeded job on {runtime!r}",
    )


def _check_run_budget(job: ExpertsJob, consent: Consent) -> float:
    share = run_delta(consent)
    require(
        job.delta <= share,
        PlanCode.OVER_BUDGET,
        "delta",
        f"at most delta {share:g}, one run's share, got {job.delta:g}",
    )
    try:
        epsilon = job.plan.epsilon(job.delta)
    except (ValueError, ArithmeticError) as error:  # extreme plans overflow deep in the accountant
        raise PlanRefused(PlanCode.OVER_BUDGET, "epsilon_per_run", str(error)) from error
    require(
        epsilon <= consent.epsilon_per_run,
        PlanCode.OVER_BUDGET,
        "epsilon_per_run",
        f"at most epsilon_per_run = {consent.epsilon_per_run:g}, got {epsilon:.6g} for the module",
    )
    return epsilon
