"""The plan of an attempt, and whether another one could succeed."""

from coordinator.attempt import AttemptReport
from coordinator.errors import RunError, SpentError
from coordinator.members import Members
from coordinator.settings import RunSettings
from models.language_model import LanguageModel
from models.vector import trainable_layout
from privacy.rounds import PlanCode, RoundPlan
from privacy.secagg.header import RefusalCode
from privacy.secagg.parameters import (
    LARGEST_COMPLETE,
    ParameterError,
    choose_parameters,
    quorum_for,
    smallest_roster,
)


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
    pinned = len(settings.members) if settings.groups == 1 else size
    chosen = choose_parameters(size, settings.colluders, size - settings.n_min, pinned)
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


def is_enough(settings: RunSettings, members: int) -> bool:
    """Tell whether an epoch may have so many of the pinned members.

    They divide into the run's groups, each has n_min, and what nodes check of a plan holds. A run
    over a sparse graph keeps to one: it was charged for that.
    """
    everyone = len(settings.members)
    size, uneven = divmod(members, settings.groups)
    if uneven or size < settings.n_min or members < smallest_roster(everyone, settings.colluders):
        return False
    if (size > LARGEST_COMPLETE) != (everyone // settings.groups > LARGEST_COMPLETE):
        return False
    try:
        choose_parameters(size, settings.colluders, size - settings.n_min)
    except ParameterError:
        return False
    return True


def least_members(settings: RunSettings) -> int:
    """Return the fewest members that an epoch may have."""
    counts = range(1, len(settings.members) + 1)
    return next(count for count in counts if is_enough(settings, count))


def most_of(settings: RunSettings, members: int) -> int:
    """Return how many of so many members an epoch takes; 0 where they are not enough."""
    return next((n for n in range(members, 0, -1) if is_enough(settings, n)), 0)


def least_answers(settings: RunSettings, size: int) -> int:
    """Return how many members a round needs, so that some group of so many has n_min and a quorum.

    However they fall into the groups.
    """
    least = settings.n_min
    if size <= LARGEST_COMPLETE:
        pinned = len(settings.members) if settings.groups == 1 else size
        least = max(least, quorum_for(pinned, settings.colluders))
    return settings.groups * (least - 1) + 1


def check_reachable(report: AttemptReport, plan: RoundPlan, attempts: int) -> None:
    """Stop where refusals alone keep a sum from n_min or its quorum: attempts cost budget.

    A member that lacks the epoch does not count: the next attempt has a new one.

    Args:
        report: of the attempt.
        plan: of it.
        attempts: that the run made so far, this one among them.

    Raises:
        SpentError: each refuses for its budget, and more attempts were made than the schedule has
            releases: an aborted one used a release up.
        RunError: any other refusals.

    """
    lasting = {
        name: detail
        for name, (code, detail) in report.refusals.items()
        if code != RefusalCode.OTHER_ROSTER
    }
    is_complete = plan.committee == plan.group_size
    least = max(plan.n_min, plan.quorum) if is_complete else plan.n_min
    if len(plan.cohort) - len(lasting) >= least:
        return
    reasons = "; ".join(f"{name}: {detail}" for name, detail in sorted(lasting.items()))
    codes = {report.refusals[name][0] for name in lasting}
    spent = codes == {PlanCode.OVER_BUDGET} and attempts > plan.step.releases
    raise (SpentError if spent else RunError)(
        f"Expected at least {least} members to take part, got refusals of "
        f"{len(lasting)} of {len(plan.cohort)}: {reasons}"
    )
