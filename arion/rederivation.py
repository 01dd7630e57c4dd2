"""Artefacts made anew from a reduced model, by the plan of those that held a withdrawn owner's.

A dense student cannot be parted into its teacher's experts: it is distilled again, from the reduced
model, where the public text is at hand that its passport names.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from arion.progress import Progress
from arion.public_text import PublicText
from arion.variant_dense import Dense, select_dense
from arion.variant_export import export
from arion.variant_order import ExportOrder, Prepared
from arion.variant_selection import Choice, Selected
from models.composition import Ownership
from models.expert_module import PUBLIC
from models.variants.check import Source
from models.variants.distil import Distillation
from models.variants.experts import Kept, everything, of_owners, prune
from models.variants.extras import VariantError
from models.variants.kinds import KINDS
from models.variants.parent import Parent
from models.variants.passport import Missing, Passport, PublicSource
from models.variants.plan import TIERS, Wanted, fitting_plans
from privacy.identity import IdentityKey


@dataclass(frozen=True)
class Reduction:
    """A model without an owner's experts.

    Attributes:
        parent: the reduced model. before: digest of the model with the owner's; ownership: its.
        heldout: public text to compare on. key: signs.
        public: what dense students are distilled on, and their experts chosen by.

    """

    parent: Parent
    owner: str
    before: str
    ownership: Ownership
    heldout: tuple[PublicText, ...]
    key: IdentityKey
    public: tuple[PublicText, ...] = ()


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
    if passport.parent_digest != reduction.before:
        raise VariantError(
            "Expected an artefact of the model as it was, got one of another version. Export anew."
        )
    taught = passport.distillation
    if taught is None:
        prepared = _without(passport, reduction)
    else:
        prepared = _taught_anew(passport, taught, reduction, progress)
    shutil.rmtree(out, ignore_errors=True)
    return export(ExportOrder(out, out, _wanted(passport)), prepared, progress)


def _without(passport: Passport, reduction: Reduction) -> Prepared:
    """Leave the owner's experts out of what the artefact keeps.

    Raises:
        VariantError: see `_kept`, `fitting_plans`.

    """
    kept = _kept(passport, reduction)
    model, tokenizer = reduction.parent.model, reduction.parent.tokenizer
    reduced = model if kept == everything(model.config) else prune(model, kept)
    plans = fitting_plans(reduced.config, model.config.experts, tokenizer, _wanted(passport))
    selected = _by_its_plan(
        Selected(Source(model, reduced, tokenizer), kept, kept, "", plans), passport, reduction
    )
    return Prepared(reduction.parent, selected, reduction.heldout, None, (), reduction.key)


def _taught_anew(
    passport: Passport, taught: Distillation, reduction: Reduction, progress: Progress
) -> Prepared:
    """Choose, join and prepare to distil as the artefact was, with the reduced model as teacher.

    Raises:
        VariantError: a text that is not at hand, fewer experts than were joined; see
            `select_dense`.

    """
    parent = reduction.parent
    texts = {
        source.use: _at_hand(source, reduction)
        for source in passport.texts
        if source.use != "held-out"
    }
    owners = tuple(
        share.owner for share in passport.owners if share.owner not in {reduction.owner, PUBLIC}
    )
    left = len(of_owners(parent.model, parent.ownership, owners)[0])
    if left < taught.joined:
        raise VariantError(
            f"Expected at least {taught.joined} experts left in every layer to join, got {left}. "
            "Export anew, with a smaller --width."
        )
    width = taught.joined * parent.model.config.expert_hidden_size
    selected, teaching = select_dense(
        parent,
        Choice(owners=owners, criterion=taught.criterion),
        Dense(width, len(taught.layers), taught.settings),
        (texts["distillation"], texts.get("calibration")),
        _wanted(passport),
        progress=progress,
    )
    selected = _by_its_plan(selected, passport, reduction)
    domain = texts.get("calibration")
    return Prepared(parent, selected, reduction.heldout, domain, (), reduction.key, teaching)


def _by_its_plan(selected: Selected, passport: Passport, reduction: Reduction) -> Selected:
    """Keep to the artefact's own number format, and say how it came."""
    plans = tuple(each for each in selected.plans if each.number_format == passport.number_format)
    return replace(selected, plans=plans, chosen_by=words_of(passport, reduction.owner))


def _at_hand(source: PublicSource, reduction: Reduction) -> PublicText:
    """The text that a passport names, among those that were given.

    Raises:
        VariantError: none has exactly these files.

    """
    for text in reduction.public:
        if text.files == source.files:
            return text
    given = ", ".join(repr(text.name) for text in reduction.public) or "none"
    raise VariantError(
        f"Expected the public text {source.name!r} of its {source.use} with --public, every file "
        f"as its passport names it, to distil it again, got {given}. Export anew with --dense."
    )


def _kept(passport: Passport, reduction: Reduction) -> Kept:
    """The reduced model's experts that the artefact keeps.

    Raises:
        VariantError: its own plan cannot be carried out again.

    """
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
