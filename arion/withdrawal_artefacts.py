"""Artefacts that held a withdrawn owner's experts: each is made again and replaced."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from arion.progress import Progress
from arion.receipt import Revoked
from arion.rederivation import Reduction, rederive, words_of
from arion.variant_dense import work_folder
from arion.withdrawal_before import Before, WithdrawalOrder
from models.variants.extras import VariantError
from models.variants.index import SHOWN, Version, read_index
from models.variants.passport import Passport
from models.variants.registry import add_artefact, add_version, passport_of, revoke


def replace_artefacts(
    order: WithdrawalOrder,
    registry: Path,
    before: Before,
    reduction: Reduction,
    progress: Progress,
) -> Iterator[Revoked]:
    """Make every revoked artefact again, and say by which it is replaced or why by none."""
    because = because_of(order.owner)
    known = {each.digest: each for each in read_index(registry).artefacts}
    version = next((known[d].version for d in before.artefacts), None)
    reduced = Version(
        digest=reduction.parent.digest,
        name=reduction.parent.name,
        derived_from=version,
        because=because,
    )
    add_version(registry, reduced)
    for digest, passport in before.artefacts.items():
        # By its digest: a distillation that was stopped must go on as the same artefact's.
        out = order.receipt.with_name(f"{order.receipt.name}.{digest[:SHOWN]}")
        new = known[digest].replaced_by or _made_before(registry, passport, reduction)
        if new is None:
            try:
                rederive(passport, reduction, out, progress)
            except VariantError as error:
                shutil.rmtree(work_folder(out), ignore_errors=True)
                progress.note(f"{digest[:SHOWN]} has no replacement: {error}")
                yield Revoked(artefact=digest, replaced_by=None, why_none=str(error))
                continue
            new = add_artefact(registry, out).digest
        shutil.rmtree(out, ignore_errors=True)
        revoke(registry, {digest: new}, because)
        yield Revoked(artefact=digest, replaced_by=new)


def _made_before(registry: Path, passport: Passport, reduction: Reduction) -> str | None:
    """The artefact that a call made before it was interrupted, if it came so far."""
    wanted = (
        reduction.parent.digest, words_of(passport, reduction.owner), _plan_of(passport),
        _owners(passport) - {reduction.owner},
    )  # fmt: skip
    for entry in read_index(registry).active():
        each = passport_of(registry, entry)
        found = (each.parent_digest, each.chosen_by, _plan_of(each), _owners(each))
        if found == wanted:
            return entry.digest
    return None


def _plan_of(passport: Passport) -> tuple[object, ...]:
    taught = passport.distillation
    shape = None if taught is None else (taught.joined, len(taught.layers), taught.settings)
    return passport.tier, passport.container, passport.number_format, shape


def _owners(passport: Passport) -> set[str]:
    return {share.owner for share in passport.owners}


def because_of(owner: str) -> str:
    """Why the registry revokes an artefact."""
    return f"{owner} withdrew its experts"
