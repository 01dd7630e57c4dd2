"""What a node reads of a plan and its recipe by itself."""

from models.training_settings import Recipe
from privacy.canonical import canonical_bytes
from privacy.identity import Signed
from privacy.rounds import PlanCode, PlanRefused, RoundPlan


def epoch_of(signed: Signed) -> int | None:
    """The epoch that a plan names, before anything of it was verified; None where it is no plan."""
    try:
        return RoundPlan.from_payload(signed.payload).epoch
    except PlanRefused:
        return None


def parse_recipe(recipe_json: bytes) -> Recipe:
    """Return a recipe that is installed here, or raise PlanRefused."""
    try:
        recipe = Recipe.model_validate_json(recipe_json)
    except ValueError:
        recipe = None
    if recipe is None or canonical_bytes(recipe.model_dump(mode="json")) != recipe_json:
        refuse_plan(PlanCode.WRONG_RECIPE, "", "a recipe that this node has installed, got another")
    assert recipe is not None
    return recipe


def refuse_plan(code: PlanCode, clause: str, expected: str) -> None:
    """Raise PlanRefused with a remedy."""
    raise PlanRefused(code, clause, f"Expected {expected}. Ask the coordinator for a new plan.")
