"""Artefacts made anew from a reduced model, by the plan of those that held a withdrawn owner's."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from arion.progress import Progress
from arion.public_text import PublicText
from arion.variant_export import ExportOrder, Prepared, export
from arion.variant_selection import Selected
from models.composition import Ownership
from models.variants.check import Source
from models.variants.experts import Kept, everything, prune
from models.variants.extras import VariantError
from models.variants.kinds import KINDS
from models.variants.parent import Parent
from models.variants.passport import Missing, Passport
from models.variants.plan import TIERS, Wanted, fitting_plans
from privacy.identity import IdentityKey


@dataclass(frozen=True)
class Reduction:
    """A model without an owner's experts.

    Attributes:
        parent: the reduced model. before: digest of the model with the owner's; ownership: its.
        heldout: public text to compare on. key: signs.

    """

    parent: Parent
    owner: str
    before: str
    ownership: Ownership
    heldout: tuple[PublicText, ...]
    key: IdentityKey


def remaining(kept: Kept, ownership: Ownership, owner: str) -> Kept:
    """Leave out an owner's experts and number the others as the reduced model does."""
    own = next(share for share in ownership.shares if share.owner == owner)
    past = own.first + own.count
    return tuple(
        tuple(e if e < own.first else e - own.count for e in layer if not own.first <= e < past)
        for layer in kept
    )


def words_of(passport: Passport, owner: str) -> str:
    """How the experts of an artefact that is made again were chosen."""
    return f"{passport.chosen_by}; made again without those of {owner}"


def rederive(passport: Passport, reduction: Reduction, out: Path, progress: Progress) -> Passport:
    """Make an artefact again without the owner's experts; `out` appears whole or not at all.

    Args:
        passport: of the artefact that held them.

    Raises:
        VariantError: it cannot be made by its own plan, said with why; or it does not pass.

    """
    kept = _kept(passport, reduction)
    model, tokenizer = reduction.parent.model, reduction.parent.tokenizer
    reduced = model if kept == everything(model.config) else prune(model, kept)
    wanted = _wanted(passport)
    plans = fitting_plans(reduced.config, model.config.experts, tokenizer, wanted)
    selected = Selected(
        source=Source(model, reduced, tokenizer),
        kept=kept,
        inside=kept,
        chosen_by=words_of(passport, reduction.owner),
        plans=tuple(plan for plan in plans if plan.number_format == passport.number_format),
    )
    shutil.rmtree(out, ignore_errors=True)
    order = ExportOrder(out, out, wanted)
    prepared = Prepared(reduction.parent, selected, reduction.heldout, None, (), reduction.key)
    return export(order, prepared, progress)


def _kept(passport: Passport, reduction: Reduction) -> Kept:
    """The reduced model's experts that the artefact keeps.

    Raises:
        VariantError: its own plan cannot be carried out again.

    """
    if passport.parent_digest != reduction.before:
        raise VariantError(
            "Expected an artefact of the model as it was, got one of another version. Export anew."
        )
    if sum(share.experts for share in passport.owners) != sum(map(len, passport.kept)):
        raise VariantError(
            "Expected an artefact without averaged experts, got one. Export anew, with the text "
            "that its experts are chosen by."
        )
    kept = remaining(passport.kept, reduction.ownership, reduction.owner)
    if len(set(map(len, kept))) != 1 or not kept[0]:
        raise VariantError(
            "Expected as many experts left in every layer, got other numbers. Export anew, with "
            "the text that its experts are chosen by."
        )
    return kept


def _wanted(passport: Passport) -> Wanted:
    """What the artefact was asked to be."""
    formats = KINDS[passport.container].number_formats
    bits = next(width for width, found in formats.items() if passport.number_format in found)
    ran = passport.verification
    context = None if isinstance(ran, Missing) else ran.context
    tier = next(each for each in TIERS if each == passport.tier)
    return Wanted(tier, passport.container, bits, context)
