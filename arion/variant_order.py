"""What is to be exported, read and checked before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arion.progress import Progress, Stage
from arion.public_text import PublicText, read_public_text
from arion.variant_audit import Canaries, read_canaries
from arion.variant_claims import ledger_claims
from arion.variant_dense import Dense, Teaching, check_apart, select_dense
from arion.variant_selection import EVERYBODY, Choice, Selected, select
from models.variants.claims import LedgerClaim
from models.variants.extras import VariantError
from models.variants.parent import Parent, open_parent
from models.variants.plan import Wanted
from privacy.identity import IdentityKey


@dataclass(frozen=True)
class ExportOrder:
    """What to export, and what its passport may draw on.

    Attributes:
        model: folder of the parent. out: must not exist.
        heldout: folders of public text to compare on. domain: one by which experts are chosen.
        choice: of experts. dense: the student that is made of them; None for the experts as they
            are. public: folder of public text that it is distilled on.
        ledger, pins: of the parent's training.
        canaries: secrets file of planted canaries whose coins are known, to audit the artefact by;
            audit_delta: where epsilon is bounded, None for the ledgers'; audit_tries: candidates
            that each canary is held against.
        key: identity that signs; None leaves the artefact unsigned.

    """

    model: Path
    out: Path
    wanted: Wanted
    heldout: tuple[Path, ...] = ()
    domain: Path | None = None
    choice: Choice = EVERYBODY
    dense: Dense | None = None
    public: Path | None = None
    ledger: Path | None = None
    pins: Path | None = None
    canaries: Path | None = None
    audit_delta: float | None = None
    audit_tries: int = 8
    key: Path | None = None


@dataclass(frozen=True)
class Prepared:
    """Everything that was read and checked before anything is written.

    Attributes:
        teaching: of the model that is exported, where it is a student; it is trained in place.

    """

    parent: Parent
    selected: Selected
    heldout: tuple[PublicText, ...]
    domain: PublicText | None
    ledger: tuple[LedgerClaim, ...]
    key: IdentityKey | None
    teaching: Teaching | None = None
    canaries: Canaries | None = None


def prepare(order: ExportOrder, progress: Progress) -> Prepared:
    """Read the model and all that was given, and plan.

    Raises:
        ValueError: the place is taken, something cannot be read, or no plan fits.

    """
    if order.out.exists():
        raise VariantError(f"Expected no {order.out} yet, got one. Choose another place.")
    if order.wanted.target.most_loss_rise is not None and not order.heldout:
        raise VariantError(
            "Expected --heldout with --max-loss-rise, got none. Name public text to measure on."
        )
    key = None if order.key is None else IdentityKey.load(order.key)
    heldout = tuple(read_public_text(folder) for folder in order.heldout)
    _check_distinct([text.name for text in heldout])
    domain = None if order.domain is None else read_public_text(order.domain)
    public = _read_lesson(order, heldout)
    if public is None:
        order.choice.check(domain, order.wanted.target)
    parent = open_parent(order.model, Stage(progress, "reading tensors"))
    claims = () if order.ledger is None else ledger_claims(order.ledger, order.pins, parent.digest)
    if order.dense is None or public is None:
        selected = select(parent, order.choice, domain, order.wanted, progress=progress)
        teaching = None
    else:
        texts = (public, domain)
        selected, teaching = select_dense(
            parent, order.choice, order.dense, texts, order.wanted, progress=progress
        )
    canaries = None
    if order.canaries is not None:
        canaries = read_canaries(order.canaries, order.audit_delta, claims, order.audit_tries)
    return Prepared(parent, selected, heldout, domain, claims, key, teaching, canaries)


def _read_lesson(order: ExportOrder, heldout: Sequence[PublicText]) -> PublicText | None:
    """Read what a student is distilled on; None where none is asked for.

    Raises:
        VariantError: a student without a text or the other way round; held-out text among it.

    """
    if order.dense is None and order.public is None:
        return None
    if order.dense is None or order.public is None:
        raise VariantError(
            "Expected --dense and --public together, got one of them. --public names the public "
            "text that a dense student is distilled on."
        )
    order.dense.check(order.choice)
    public = read_public_text(order.public)
    check_apart(heldout, (public,))
    return public


def _check_distinct(names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise VariantError(
            f"Expected public texts of distinct names, got {', '.join(sorted(names))}. Rename one "
            "in its public.toml."
        )
