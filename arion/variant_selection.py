"""Which of the parent's experts an artefact holds, and the plans that fit with them.

Nothing but text that declares itself public (arion.public_text) can be given to choose by.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from arion.public_text import PublicText
from models.config import ModelConfig
from models.variants.check import LENGTH, Source, spread_rows
from models.variants.experts import Kept, best, everything, expert_use, merge, of_owners, prune
from models.variants.extras import VariantError
from models.variants.parent import Parent
from models.variants.plan import Plan, Target, TooLargeError, Wanted, fitting_plans

Criterion = Literal["mass", "reap"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
_WORDS = {"mass": "by routing mass", "reap": "by router-weighted activation (REAP)"}
_CALIBRATION_ROWS = 256


@dataclass(frozen=True)
class Choice:
    """Which experts are wanted.

    Attributes:
        owners: whose experts are taken beside the base's own; None takes everybody's.
        experts: per layer; None for as many as fit.
        criterion: which of the text's figures decides. merged: those that go are averaged in.

    """

    owners: tuple[str, ...] | None = None
    experts: int | None = None
    criterion: Criterion = "reap"
    merged: bool = False

    def check(self, domain: PublicText | None, target: Target) -> None:
        """Refuse a choice that nothing decides.

        Raises:
            VariantError: a number without a text, a text without a number or a size to reach.

        """
        if self.experts is not None and domain is None:
            raise VariantError(
                "Expected --domain with --experts, got none. Name public text by which experts are "
                "chosen."
            )
        limits = (self.experts, target.most_bytes, target.most_memory)
        if domain is not None and limits == (None, None, None):
            raise VariantError(
                "Expected --experts, --max-bytes or --max-memory with --domain, got none. Say how "
                "small the artefact is to be."
            )
        if self.merged and domain is None:
            raise VariantError("Expected --domain with --merge, got none. Name public text.")


EVERYBODY = Choice()


@dataclass(frozen=True)
class Selected:
    """The model that is exported, and its plans.

    Attributes:
        kept: the parent's experts in it. inside: those whose weights went in, the averaged ones
            too. chosen_by: in words.

    """

    source: Source
    kept: Kept
    inside: Kept
    chosen_by: str
    plans: tuple[Plan, ...]


def select(parent: Parent, choice: Choice, domain: PublicText | None, wanted: Wanted) -> Selected:
    """Choose experts, so that a plan fits.

    Args:
        domain: public text by which experts are chosen; None keeps all of the owners'.

    Raises:
        VariantError: see `Choice.check`, `fitting_plans`, `of_owners`, `best`.

    """
    choice.check(domain, wanted.target)
    model, config = parent.model, parent.model.config
    allowed = parent.all_experts
    if choice.owners is not None:
        allowed = of_owners(model, parent.ownership, choice.owners)
    whose = "all were kept" if allowed == parent.all_experts else "chosen by owner"
    allowed_model = model if allowed == parent.all_experts else prune(model, allowed)
    count, plans = _first_fit(parent, _counts(choice, domain, len(allowed[0]), config), wanted)
    if domain is None or count == len(allowed[0]):
        source = Source(model, allowed_model, parent.tokenizer)
        return Selected(source, allowed, allowed, whose, plans)
    rows = spread_rows(parent.tokenizer, domain.texts, _length(config), _CALIBRATION_ROWS)
    use = expert_use(allowed_model, rows)
    score_LE = use.mass_LE if choice.criterion == "mass" else use.reap_LE
    chosen = best(everything(allowed_model.config), score_LE, count)
    chosen_by = f"chosen {_WORDS[choice.criterion]} on the public text {domain.name!r}"
    chosen_by += ", the others averaged into them" * choice.merged
    reduced = merge(allowed_model, chosen, use) if choice.merged else prune(allowed_model, chosen)
    kept = tuple(
        tuple(layer[expert] for expert in picked)
        for layer, picked in zip(allowed, chosen, strict=True)
    )
    source = Source(model, reduced, parent.tokenizer)
    return Selected(source, kept, allowed if choice.merged else kept, chosen_by, plans)


def _counts(
    choice: Choice, domain: PublicText | None, there: int, config: ModelConfig
) -> Iterator[int]:
    """Numbers of experts to try, most first; no fewer than a token uses unless asked for."""
    if choice.experts is not None:
        yield choice.experts
        return
    yield there
    if domain is not None:
        yield from range(there - 1, config.experts_per_token - 1, -1)


def _first_fit(
    parent: Parent, counts: Iterator[int], wanted: Wanted
) -> tuple[int, tuple[Plan, ...]]:
    """Return the largest number of experts that fits, and its plans."""
    config, refusal = parent.model.config, None
    for count in counts:
        if not 1 <= count <= config.experts:
            raise VariantError(
                f"Expected 1 to {config.experts} experts per layer, got {count}. Correct --experts."
            )
        per_token = min(config.experts_per_token, count)
        sizes = {"experts": count, "experts_per_token": per_token}
        try:
            smaller = config.model_copy(update=sizes)
            return count, fitting_plans(smaller, config.experts, parent.tokenizer, wanted)
        except TooLargeError as error:
            refusal = error
    assert refusal is not None, "there is at least one count"
    raise refusal


def _length(config: ModelConfig) -> int:
    return min(LENGTH, config.max_positions - 1)
