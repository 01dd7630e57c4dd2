"""An owner withdraws: its module goes, every artefact with its experts is made anew without them.

Steps, each of which a crash may interrupt and the same call takes up again: 1. what there was is
written down beside the receipt that is to come; 2. the module leaves the model; 3. the registry
revokes every artefact that held its experts; 4. each is derived again from the reduced model, by
the same plan, and takes the old one's place; 5. the receipt is signed and written.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pydantic import BaseModel, ConfigDict
from scipy.stats import combine_pvalues

from arion.audit_secrets import PlantedSecret, audit_secrets, load_secrets
from arion.progress import Progress
from arion.public_text import read_public_text
from arion.receipt import (
    Canaries,
    Exposures,
    Receipt,
    ReceiptError,
    Revoked,
    digests_below,
    remains,
    signed_receipt,
)
from arion.rederivation import Reduction, rederive, words_of
from arion.summary import stamp
from arion.variant_claims import ledger_claims
from arion.variant_dense import check_apart, work_folder
from client.entropy import Entropy
from models.composition import Ownership
from models.durable import write_whole
from models.modular import MANIFEST, ModuleEntry, read_manifest, withdraw
from models.names import Digest, OwnerName
from models.owned import OwnedError
from models.variants.claims import LedgerClaim
from models.variants.extras import VariantError
from models.variants.index import SHOWN, Version, read_index
from models.variants.parent import Parent, open_parent
from models.variants.passport import Passport
from models.variants.registry import add_artefact, add_version, passport_of, revoke
from privacy.identity import IdentityKey

_TRIES = 200  # candidates that a planted secret is compared with


@dataclass(frozen=True)
class WithdrawalOrder:
    """What is withdrawn, and what the receipt may draw on.

    Attributes:
        model: folder of a modular model. receipt: where it goes; must not exist.
        registry: whose artefacts are revoked and made anew. heldout: public text to compare them
            on. public: public text to distil dense ones on again.
        canaries: secrets that were planted in the owner's text (`arion privacy plant`).
        ledger, pins: of the runs that the owner took part in.

    """

    model: Path
    owner: str
    key: Path
    receipt: Path
    registry: Path | None = None
    heldout: tuple[Path, ...] = ()
    public: tuple[Path, ...] = ()
    canaries: Path | None = None
    ledger: Path | None = None
    pins: Path | None = None


class _Before(BaseModel):
    """What there was, as it is needed after a crash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: OwnerName
    base_digest: Digest
    model_digest: Digest
    files: dict[str, Digest]
    removed: dict[str, Digest]
    ownership: Ownership
    artefacts: dict[Digest, Passport]
    exposures: Exposures | None


def withdraw_owner(order: WithdrawalOrder, progress: Progress) -> Receipt:
    """Withdraw an owner; see the steps above. Everything given is checked before anything changes.

    Raises:
        OwnedError: the owner has no module in the model.
        ValueError: something that was given cannot be read, or the place is taken.

    """
    if order.receipt.exists():
        raise VariantError(f"Expected no {order.receipt} yet, got one. Choose another place.")
    key = IdentityKey.load(order.key)
    heldout = tuple(read_public_text(folder) for folder in order.heldout)
    public = tuple(read_public_text(folder) for folder in order.public)
    check_apart(heldout, public)
    secrets = () if order.canaries is None else load_secrets(order.canaries)
    before = _before(order, secrets)  # 1
    claim = _claim(order, before.model_digest)
    write_whole(_journal(order), before.model_dump_json().encode())
    if order.owner in {entry.owner for entry in _all_modules(order.model)}:
        withdraw(order.model, order.owner)  # 2
    reduced = open_parent(order.model)
    revoked = None
    if order.registry is not None:
        revoke(order.registry, dict.fromkeys(before.artefacts), _because(order.owner))  # 3
        changed = Reduction(
            reduced, order.owner, before.model_digest, before.ownership, heldout, key, public
        )
        revoked = tuple(_replace(order, order.registry, before, changed, progress))  # 4
    after = _exposures(reduced, secrets)
    receipt = _receipt(order, before, reduced.digest, revoked=revoked, claim=claim, after=after)
    write_whole(order.receipt, signed_receipt(receipt, key))  # 5
    _journal(order).unlink()
    return receipt


def _receipt(
    order: WithdrawalOrder,
    before: _Before,
    digest: str,
    *,
    revoked: tuple[Revoked, ...] | None,
    claim: LedgerClaim | None,
    after: Exposures | None,
) -> Receipt:
    made = stamp()
    return Receipt(
        owner=order.owner,
        created=made["created"],
        version=made["version"],
        model=order.model.resolve().name,
        model_before=before.model_digest,
        model_after=digest,
        base_digest=before.base_digest,
        removed=before.removed,
        unchanged=_unchanged(order.model, before),
        revoked=revoked,
        canaries=_canaries(before.exposures, after),
        ledger=claim,
        remains=tuple(remains(order.owner, claim, _distilled(before, revoked))),
    )


def _before(order: WithdrawalOrder, secrets: Sequence[PlantedSecret]) -> _Before:
    """Say what there is, or read what a call that was interrupted wrote down."""
    journal = _journal(order)
    if journal.exists():
        found = _Before.model_validate_json(journal.read_bytes())
        if found.owner != order.owner:
            raise VariantError(
                f"Expected the withdrawal of {found.owner!r}, which was begun, to be finished, got "
                f"{order.owner!r}. Finish that one, or choose another --receipt."
            )
        return found
    entry = next((e for e in read_manifest(order.model).modules if e.owner == order.owner), None)
    if entry is None:
        raise OwnedError(
            f"Expected an owner with a module in {order.model}, got {order.owner!r}. `arion model "
            "expert list` shows who is in."
        )
    parent, files = open_parent(order.model), digests_below(order.model)
    assert parent.ownership is not None, "a modular model has owners"
    gone = {entry.weights_digest, entry.card_digest}
    return _Before(
        owner=order.owner,
        base_digest=parent.ownership.base_digest,
        model_digest=parent.digest,
        files=files,
        removed={name: digest for name, digest in files.items() if digest in gone},
        ownership=parent.ownership,
        artefacts=_affected(order, entry.weights_digest),
        exposures=_exposures(parent, secrets),
    )


def _affected(order: WithdrawalOrder, module: str) -> dict[str, Passport]:
    """Active artefacts that hold experts of the module, by digest."""
    if order.registry is None:
        return {}
    found = {}
    for entry in read_index(order.registry).active():
        passport = passport_of(order.registry, entry)
        if any(share.module == module for share in passport.owners):
            found[entry.digest] = passport
    return found


def _replace(
    order: WithdrawalOrder,
    registry: Path,
    before: _Before,
    reduction: Reduction,
    progress: Progress,
) -> Iterator[Revoked]:
    """Make every revoked artefact again, and say by which it is replaced or why by none."""
    because = _because(order.owner)
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


def _distilled(before: _Before, revoked: tuple[Revoked, ...] | None) -> tuple[Revoked, ...]:
    """Those of the revoked artefacts that were dense students."""
    return tuple(
        each for each in revoked or () if before.artefacts[each.artefact].distillation is not None
    )


def _exposures(parent: Parent, secrets: Sequence[PlantedSecret]) -> Exposures | None:
    if not secrets:
        return None
    found = audit_secrets(
        parent.model, parent.tokenizer, secrets, tries=_TRIES, entropy=Entropy(None)
    )
    values = [each.exposure.p_value for each in found]
    return Exposures(
        secrets=len(found),
        mean_bits=fmean(each.exposure.bits for each in found),
        p_value=float(combine_pvalues(values, method="fisher").pvalue),
    )


def _canaries(before: Exposures | None, after: Exposures | None) -> Canaries | None:
    return None if before is None or after is None else Canaries(before=before, after=after)


def _unchanged(model: Path, before: _Before) -> dict[str, str]:
    """The files that stand as they stood, which are all but the module's and the manifest.

    Raises:
        ReceiptError: another one changed, which no receipt may be silent about.

    """
    expected = {n: d for n, d in before.files.items() if n not in {*before.removed, MANIFEST}}
    found = digests_below(model)
    wrong = sorted(name for name, digest in expected.items() if found.get(name) != digest)
    if wrong or set(before.removed) & set(found):
        raise ReceiptError(
            f"Expected every other file of the model as it was, got {wrong[:1] or 'the module'} "
            "changed or there. Restore the model, and give the same command again."
        )
    return expected


def _claim(order: WithdrawalOrder, parent_digest: str) -> LedgerClaim | None:
    """What the owner's own ledger charged, or None where no ledger was given."""
    if order.ledger is None:
        return None
    claims = ledger_claims(order.ledger, order.pins, parent_digest)
    own = next((claim for claim in claims if claim.node == order.owner), None)
    if own is None:
        raise VariantError(
            f"Expected a ledger of {order.owner!r} in {order.ledger}, got those of "
            f"{', '.join(claim.node for claim in claims)}. Give the folder that holds it."
        )
    return own


def _all_modules(model: Path) -> Iterator[ModuleEntry]:
    manifest = read_manifest(model)
    yield from (*manifest.modules, *manifest.leaving)


def _because(owner: str) -> str:
    return f"{owner} withdrew its experts"


def _journal(order: WithdrawalOrder) -> Path:
    return order.receipt.with_name(order.receipt.name + ".unfinished")
