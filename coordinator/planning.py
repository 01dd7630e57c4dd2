"""The plan of an attempt, and whether another one could succeed."""

from coordinator.attempt import AttemptReport, Members
from coordinator.errors import RunError
from coordinator.settings import RunSettings
from models.language_model import LanguageModel
from models.vector import trainable_layout
from privacy.rounds import RoundPlan
from privacy.secagg.header import RefusalCode
from privacy.secagg.parameters import choose_parameters


def make_plan(
    settings: RunSettings,
    model: LanguageModel,
    digest: str,
    members: Members,
    *,
    number: int,
    attempt: int,
) -> RoundPlan:
    """Write the plan of an attempt for the model as it stands, whose digest is given."""
    layout = trainable_layout(model)
    names = members.roster.names
    size = len(names) // settings.groups
    chosen = choose_parameters(size, settings.colluders, size - settings.n_min)
    return RoundPlan(
        federation=settings.federation,
        run=settings.run,
        epoch=members.roster.epoch,
        round=number,
        attempt=attempt,
        roster_digest=members.roster.digest.hex(),
        model_digest=digest,
        recipe_digest=settings.recipe_digest(),
        trainable=layout,
        vector_length=sum(size for _, size in layout),
        cohort=names,
        groups=settings.groups,
        degree=chosen.degree,
        least_neighbours=chosen.least_neighbours,
        committee=chosen.committee,
        quorum=chosen.quorum,
        n_min=settings.n_min,
        colluders=settings.colluders,
        step=settings.step,
        dp_event=settings.step.event_json(),
        runtime=settings.runtime,
        seeded=settings.seeded,
    )


def check_reachable(report: AttemptReport, plan: RoundPlan) -> None:
    """Stop where refusals alone keep a sum from ever reaching n_min: attempts cost budget.

    A member that lacks the epoch does not count: the next attempt has a new one.
    """
    lasting = {
        name: detail
        for name, (code, detail) in report.refusals.items()
        if code != RefusalCode.OTHER_ROSTER
    }
    if len(plan.cohort) - len(lasting) >= plan.n_min:
        return
    reasons = "; ".join(f"{name}: {detail}" for name, detail in sorted(lasting.items()))
    raise RunError(
        f"Expected at least n_min = {plan.n_min} members to take part, got refusals of "
        f"{len(lasting)} of {len(plan.cohort)}: {reasons}"
    )
