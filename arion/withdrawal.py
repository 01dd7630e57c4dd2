"""An owner withdraws: its module goes, every artefact with its experts is made anew without them.

Steps, each of which a crash may interrupt and the same call takes up again: 1. what there was is
written down beside the receipt that is to come; 2. the module leaves the model; 3. the registry
revokes every artefact that held its experts; 4. each is derived again from the reduced model, by
the same plan, and takes the old one's place; 5. the receipt is signed and written.
"""

from collections.abc import Iterator
from pathlib import Path

from arion.audit_secrets import load_secrets
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
from arion.rederivation import Reduction
from arion.summary import stamp
from arion.variant_claims import ledger_claims
from arion.variant_dense import check_apart
from arion.withdrawal_artefacts import because_of, replace_artefacts
from arion.withdrawal_before import (
    Before,
    WithdrawalOrder,
    exposures_of,
    journal_of,
    read_before,
)
from models.durable import write_whole
from models.modular import MANIFEST, ModuleEntry, read_manifest, withdraw
from models.variants.claims import LedgerClaim
from models.variants.extras import VariantError
from models.variants.parent import open_parent
from models.variants.registry import revoke
from privacy.identity import IdentityKey


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
    before = read_before(order, secrets)  # 1
    claim = _claim(order, before.model_digest)
    write_whole(journal_of(order), before.model_dump_json().encode())
    if order.owner in {entry.owner for entry in _all_modules(order.model)}:
        withdraw(order.model, order.owner)  # 2
    reduced = open_parent(order.model)
    revoked = None
    if order.registry is not None:
        revoke(order.registry, dict.fromkeys(before.artefacts), because_of(order.owner))  # 3
        changed = Reduction(
            reduced, order.owner, before.model_digest, before.ownership, heldout, key, public
        )
        revoked = tuple(replace_artefacts(order, order.registry, before, changed, progress))  # 4
    after = exposures_of(reduced, secrets)
    receipt = _receipt(order, before, reduced.digest, revoked=revoked, claim=claim, after=after)
    write_whole(order.receipt, signed_receipt(receipt, key))  # 5
    journal_of(order).unlink()
    return receipt


def _receipt(
    order: WithdrawalOrder,
    before: Before,
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


def _distilled(before: Before, revoked: tuple[Revoked, ...] | None) -> tuple[Revoked, ...]:
    """Those of the revoked artefacts that were dense students."""
    return tuple(
        each for each in revoked or () if before.artefacts[each.artefact].distillation is not None
    )


def _canaries(before: Exposures | None, after: Exposures | None) -> Canaries | None:
    return None if before is None or after is None else Canaries(before=before, after=after)


def _unchanged(model: Path, before: Before) -> dict[str, str]:
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
