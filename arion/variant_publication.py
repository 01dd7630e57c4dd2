"""How an artefact that passed comes to its place: its passport, its card and its signature."""

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

from arion.public_text import PublicText
from arion.variant_card import card_text
from arion.variant_order import ExportOrder, Prepared
from models.durable import file_digest, put, sync, write_whole
from models.variants.check import Checked
from models.variants.distil import Distillation
from models.variants.kinds import KINDS, files_of
from models.variants.names import ATTESTATION, CARD, PASSPORT
from models.variants.passport import Missing, Passport, PublicSource, Use, verification
from models.variants.plan import Plan
from privacy.attestation import attest
from privacy.identity import IdentityKey

PREDICATE = "urn:arion:variant:v1"


def passport_for(
    prepared: Prepared,
    plan: Plan,
    part: Path,
    found: Checked | Missing,
    taught: Distillation | None,
) -> Passport:
    """What is claimed of the files in `part`.

    Args:
        prepared: what the artefact was made of.
        plan: by which it was made.
        part: folder of its files.
        found: what a run of it showed, or what is not installed to run it.
        taught: how it was distilled; None where it was not.

    """
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


def publish(
    order: ExportOrder, key: IdentityKey | None, part: Path, passport: Passport
) -> Passport:
    """Add passport, card and signature, and give the folder its name.

    Args:
        order: names the place.
        key: signs; None leaves the artefact unsigned.
        part: folder of the artefact's files.
        passport: what is claimed of them.

    Returns:
        The passport, with the card's digest among the files'.

    """
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
