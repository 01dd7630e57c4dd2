"""Which of the parent's experts an artefact holds, and the plans that fit with them.

Nothing but text that declares itself public (arion.public_text) can be given to choose by.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from arion.progress import Progress, Stage
from arion.public_text import PublicText
from models.config import ModelConfig
from models.decoder import Decoder
from models.formats.shards import Advance
from models.tokenizer import Row
from models.variants.check import LENGTH, Source, spread_rows
from models.variants.experts import (
    Kept,
    Use,
    best,
    everything,
    expert_use,
    merge,
    of_owners,
    prune,
)
from models.variants.extras import VariantError
from models.variants.parent import Parent
from models.variants.plan import Plan, Target, TooLargeError, Wanted, fitting_plans

Criterion = Literal["mass", "reap"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
WORDS: dict[Criterion, str] = {
    "mass": "by routing mass",
    "reap": "by router-weighted activation (REAP)",
}
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


def select(
    parent: Parent,
    choice: Choice,
    domain: PublicText | None,
    wanted: Wanted,
    *,
    progress: Progress | None = None,
) -> Selected:
    """Choose experts, so that a plan fits.

    Args:
        domain: public text by which experts are chosen; None keeps all of the owners'.

    Raises:
        VariantError: see `Choice.check`, `fitting_plans`, `of_owners`, `best`.

    """
    choice.check(domain, wanted.target)
    model, config = parent.model, parent.model.config
    allowed, allowed_model, whose = allowed_experts(parent, choice)
    counts = _counts(choice, domain, len(allowed[0]), config)
    count, plans = first_fit(parent, _shapes(config, counts), wanted)
    if domain is None or count == len(allowed[0]):
        source = Source(model, allowed_model, parent.tokenizer)
        return Selected(source, allowed, allowed, whose, plans)
    found = calibration(parent, allowed_model, domain, progress)
    chosen = best(everything(allowed_model.config), found.score(choice.criterion), count)
    chosen_by = f"chosen {WORDS[choice.criterion]} on the public text {domain.name!r}"
    chosen_by += ", the others averaged into them" * choice.merged
    reduced = prune(allowed_model, chosen)
    if choice.merged:
        reduced = merge(allowed_model, chosen, found.use)
    kept = tuple(
        tuple(layer[expert] for expert in picked)
        for layer, picked in zip(allowed, chosen, strict=True)
    )
    source = Source(model, reduced, parent.tokenizer)
    return Selected(source, kept, allowed if choice.merged else kept, chosen_by, plans)


@dataclass(frozen=True)
class Calibration:
    """Public text, and what the experts of a model do on it."""

    rows: list[Row]
    use: Use

    def score(self, criterion: Criterion) -> Tensor:
        """Return the figure that decides, fp64 [layers, experts]."""
        return self.use.mass_LE if criterion == "mass" else self.use.reap_LE


def allowed_experts(parent: Parent, choice: Choice) -> tuple[Kept, Decoder, str]:
    """Return the experts of the owners that were asked for, a model of them, and how it came.

    Raises:
        VariantError: see `of_owners`.

    """
    model, whole = parent.model, parent.all_experts
    allowed = whole
    if choice.owners is not None:
        allowed = of_owners(model, parent.ownership, choice.owners)
    if allowed == whole:
        return whole, model, "all were kept"
    return allowed, prune(model, allowed), "chosen by owner"


def calibration(
    parent: Parent, model: Decoder, domain: PublicText, progress: Progress | None = None
) -> Calibration:
    """Let a model read public text, rows spread over it."""
    length = min(LENGTH, model.config.max_positions - 1)
    rows = spread_rows(parent.tokenizer, domain.texts, length, _CALIBRATION_ROWS)
    return Calibration(rows, expert_use(model, rows, told(progress, "watching experts")))


def told(progress: Progress | None, stage: str) -> Advance:
    """Return who is told how far a stage is: nobody without a progress."""
    return Stage(progress, stage) if progress is not None else lambda done, total: None


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


def _shapes(config: ModelConfig, counts: Iterable[int]) -> Iterator[tuple[int, ModelConfig]]:
    for count in counts:
        if not 1 <= count <= config.experts:
            raise VariantError(
                f"Expected 1 to {config.experts} experts per layer, got {count}. Correct --experts."
            )
        per_token = min(config.experts_per_token, count)
        sizes = {"experts": count, "experts_per_token": per_token}
        yield count, config.model_copy(update=sizes)


def first_fit(
    parent: Parent,
    shapes: Iterable[tuple[int, ModelConfig]],
    wanted: Wanted,
    *,
    joined: bool = False,
) -> tuple[int, tuple[Plan, ...]]:
    """Return the first number of experts that fits, and its plans.

    Args:
        shapes: numbers of experts, at least one, and the model of each. joined: into one.

    Raises:
        TooLargeError: none fits; said of the last. VariantError: see `fitting_plans`.

    """
    most, refusal = parent.model.config.experts, None
    for count, shape in shapes:
        into = count if joined else None
        try:
            return count, fitting_plans(shape, most, parent.tokenizer, wanted, into)
        except TooLargeError as error:
            refusal = error
    assert refusal is not None, "there is at least one count"
    raise refusal
