"""From a model to an artefact that ships: plan, write, run, pass or not pass, publish.

Nothing stands at the artefact's place until it has passed; a plan that fails is tried no further,
and the next that fits is.
"""

import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from arion.progress import Progress, Stage
from arion.public_text import PublicText, read_public_text
from arion.variant_audit import Canaries, audit_artefact, read_canaries, refutation
from arion.variant_card import card_text
from arion.variant_claims import ledger_claims
from arion.variant_dense import (
    Dense,
    Teaching,
    check_apart,
    select_dense,
    teach,
    work_folder,
)
from arion.variant_selection import EVERYBODY, Choice, Selected, select
from client.entropy import Entropy
from models.durable import file_digest, put, sync, write_whole
from models.variants.check import Checked, failures, run_artefact
from models.variants.claims import Audited, LedgerClaim
from models.variants.distil import Distillation
from models.variants.extras import MissingExtraError, VariantError
from models.variants.kinds import KINDS, files_of
from models.variants.names import ATTESTATION, CARD, PASSPORT
from models.variants.parent import Parent, open_parent
from models.variants.passport import (
    Missing,
    Passport,
    PublicSource,
    Use,
    verification,
)
from models.variants.plan import Plan, Wanted
from privacy.attestation import attest
from privacy.audit.one_run import AuditError
from privacy.identity import IdentityKey

PREDICATE = "urn:arion:variant:v1"


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
        selected, teaching = select(parent, order.choice, domain, order.wanted), None
    else:
        texts = (public, domain)
        selected, teaching = select_dense(parent, order.choice, order.dense, texts, order.wanted)
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


def export(order: ExportOrder, prepared: Prepared, progress: Progress) -> Passport:
    """Carry the plans out in order until one passes, and publish that.

    Raises:
        VariantError: none passed; said with why, and with what came nearest.

    """
    part, work = order.out.with_name(order.out.name + ".part"), work_folder(order.out)
    taught = None if prepared.teaching is None else teach(prepared.teaching, work, progress)
    reasons = []
    for plan in prepared.selected.plans:
        shutil.rmtree(part, ignore_errors=True)
        try:
            found = _make(plan, part, prepared, progress)
            failed = (
                () if isinstance(found, Missing) else failures(found, plan, order.wanted.target)
            )
            audited = None if failed else _audit(plan, part, prepared, found, progress)
            if not failed:
                passport = _passport(prepared, plan, part, found, taught)
                if audited is not None:
                    passport = passport.model_copy(update={"audited": audited})
                published = _publish(order, prepared.key, part, passport)
                shutil.rmtree(work, ignore_errors=True)
                return published
        except VariantError as error:
            failed = (str(error),)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        progress.note(f"{plan.name}: not published: {'; '.join(failed)}")
        reasons.append(f"{plan.name}: {'; '.join(failed)}")
    if taught is not None:
        progress.note(f"The distilled weights are kept in {work}: another try begins with them.")
    raise VariantError(
        f"Expected an artefact that passes, got none of {len(reasons)} tried. "
        f"{' | '.join(reasons)}. Nothing was published; the last comes nearest in size and speed, "
        "the first in quality."
    )


def _make(plan: Plan, part: Path, prepared: Prepared, progress: Progress) -> Checked | Missing:
    """Write an artefact and run it; Missing where its runtime is not installed."""
    source, kind = prepared.selected.source, KINDS[plan.container]
    advance = Stage(progress, f"writing {plan.number_format}")
    kind.write(source.model, source.tokenizer, part, plan.number_format, advance)
    texts = {text.name: text.texts for text in prepared.heldout}
    try:
        return run_artefact(plan, part, source, texts, Stage(progress, "comparing texts"))
    except MissingExtraError as error:
        progress.note(f"Not checked: {error}")
        return Missing(missing_extra=error.extra)


def _audit(
    plan: Plan, part: Path, prepared: Prepared, found: Checked | Missing, progress: Progress
) -> Audited | None:
    """Attack an artefact that passed; None where nobody asked.

    Raises:
        AuditError: more is shown than was claimed, or the artefact cannot be run. No other plan is
            tried then: a coarser one may hide what was found, and the fault is in the training.

    """
    if prepared.canaries is None:
        return None
    if isinstance(found, Missing):
        raise AuditError(
            f"Expected an artefact that runs here, to audit it, got no runtime. Run pip install "
            f"'arion-federated[{found.missing_extra}]', or export without --canaries."
        )
    begin, advance = prepared.parent.tokenizer.begin_of_text_id, Stage(progress, "canaries")
    audited = audit_artefact(
        plan, part, begin, prepared.canaries, entropy=Entropy(None), advance=advance
    )
    if said := refutation(audited, prepared.ledger):
        raise AuditError(said)
    return audited


def _publish(
    order: ExportOrder, key: IdentityKey | None, part: Path, passport: Passport
) -> Passport:
    """Add passport, card and signature, and give the folder its name."""
    write_whole(part / CARD, card_text(passport, order.out.name).encode())
    listed = {**passport.files, CARD: file_digest(part / CARD)}
    passport = passport.model_copy(update={"files": listed})
    write_whole(part / PASSPORT, (passport.model_dump_json(indent=2) + "\n").encode())
    if key is not None:
        signed = {**listed, PASSPORT: file_digest(part / PASSPORT)}
        predicate = passport.model_dump(mode="json", exclude={"files"})
        write_whole(part / ATTESTATION, attest(key, signed, PREDICATE, predicate))
    for path in files_of(part):
        sync(path)
    put(part, order.out)
    return passport


def _passport(
    prepared: Prepared,
    plan: Plan,
    part: Path,
    found: Checked | Missing,
    taught: Distillation | None,
) -> Passport:
    """What is claimed of the files in `part`."""
    machine = f"{platform.machine()}, {platform.system()}"
    checked = found if isinstance(found, Missing) else verification(found, plan.context, machine)
    return Passport(
        tier=plan.tier,
        container=plan.container,
        number_format=plan.number_format,
        parent=prepared.parent.name,
        parent_digest=prepared.parent.digest,
        parent_experts=plan.parent_experts,
        kept=prepared.selected.kept,
        chosen_by=prepared.selected.chosen_by,
        distillation=taught,
        contents=KINDS[plan.container].inspect(part),
        owners=prepared.parent.shares(prepared.selected.inside),
        texts=tuple(_sources(prepared)),
        ledger=prepared.ledger,
        verification=checked,
        file_bytes=sum(path.stat().st_size for path in files_of(part)),
        notes=tuple(_notes(prepared, plan)),
        files={path.name: file_digest(path) for path in files_of(part)},
    )


def _sources(prepared: Prepared) -> Iterator[PublicSource]:
    used: list[tuple[PublicText, Use]] = [(text, "held-out") for text in prepared.heldout]
    if prepared.domain is not None:
        used.append((prepared.domain, "calibration"))
    if prepared.teaching is not None:
        used.append((prepared.teaching.text, "distillation"))
    for text, use in used:
        yield PublicSource(
            name=text.name,
            use=use,
            source=text.source,
            licence=text.licence,
            files=text.files,
        )


def _notes(prepared: Prepared, plan: Plan) -> Sequence[str]:
    found = []
    if prepared.teaching is not None:
        found.append(
            "A dense model cannot be parted into its teacher's experts: the owners' shares name "
            "everyone whose experts the teacher held, and withdrawing one takes a new distillation."
        )
    elif prepared.selected.inside != prepared.selected.kept:
        found.append(
            "Experts that are not kept were averaged into those that are: the owners' shares name "
            "everyone whose experts went in, and withdrawing one takes a new export."
        )
    description = prepared.parent.tokenizer.description()
    if plan.container == "gguf" and (description["normalizer"] or {}).get("type") == "NFC":
        found.append(
            "llama.cpp does not bring texts into Unicode's composed form (NFC), as the tokenizer "
            "does: give it composed text."
        )
    return found


def _check_distinct(names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise VariantError(
            f"Expected public texts of distinct names, got {', '.join(sorted(names))}. Rename one "
            "in its public.toml."
        )
