"""The receipt of a withdrawal: what was done, what is left, and what is not claimed; signed.

It is an in-toto statement about the files that did not change. Whoever holds it checks it offline,
against the model and the registry if these are at hand.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, ValidationError

from models.durable import file_digest
from models.modular import read_manifest
from models.names import Digest, OwnerName
from models.variants.claims import LedgerClaim
from models.variants.frozen import Frozen
from models.variants.index import artefact_path, read_index
from privacy.attestation import attest, verify_attestation
from privacy.identity import IdentityKey
from privacy.ledger.entries import EPSILON_UNITS

PREDICATE = "urn:arion:withdrawal:v1"
# Below it, so much exposure is no chance.
CHANCE = 0.01
NOT_CLAIMED = (
    "It is not claimed that the model has unlearned the owner's text: parameters that were "
    "trained together, router tuning, merging and distilling keep an influence.",
    "Copies that others hold, and artefacts that were fetched before, are out of reach.",
)


class ReceiptError(ValueError):
    """A receipt that does not hold, or does not fit what it is held against."""


class Exposures(Frozen):
    """How far a model gives planted secrets away.

    Attributes:
        mean_bits: of their exposure. p_value: of so much exposure, all of them together, for
            secrets that were never seen (Fisher's method over bounds on each one's).

    """

    secrets: int = Field(gt=0)
    mean_bits: FiniteFloat
    p_value: float = Field(ge=0, le=1)

    @property
    def is_chance(self) -> bool:
        """Whether secrets that were never seen would show as much."""
        return self.p_value >= CHANCE


class Canaries(Frozen):
    """Secrets of the owner's training text, before and after the withdrawal."""

    before: Exposures
    after: Exposures


class Revoked(Frozen):
    """An artefact that held the owner's experts.

    Attributes:
        replaced_by: the artefact made of the reduced model. why_none: where there is none.

    """

    artefact: Digest
    replaced_by: Digest | None
    why_none: str | None = None


class Receipt(Frozen):
    """What a withdrawal did.

    Attributes:
        removed, unchanged: SHA-256 of files of the model's folder, by path in it.
        model_before, model_after: `model_digest` of the model with all owners' experts.
        revoked: artefacts of the registry; None where no registry was given.
        canaries: None where no planted secrets were given.
        ledger: what the owner's ledger charged for shared parameters; None where none was given.
        remains: what may still hold an influence, in sentences.

    """

    format: Literal[1] = 1
    owner: OwnerName
    created: str
    version: str
    model: str
    model_before: Digest
    model_after: Digest
    base_digest: Digest
    removed: Annotated[dict[str, Digest], Field(min_length=1)]
    unchanged: Annotated[dict[str, Digest], Field(min_length=1)]
    revoked: tuple[Revoked, ...] | None
    canaries: Canaries | None
    ledger: LedgerClaim | None
    remains: tuple[str, ...]
    not_claimed: tuple[str, ...] = NOT_CLAIMED


def remains(owner: str, claim: LedgerClaim | None, distilled: Sequence[Revoked]) -> Iterator[str]:
    """Say what may still hold an influence of the owner's text, in sentences.

    Args:
        claim: of the owner's ledger. distilled: the dense students among what was revoked.

    """
    if claim is None:
        yield (
            f"The base and its routers stay as they are. If {owner} took part in training them, an "
            "influence of its text remains; no ledger was given, so no bound is stated."
        )
    elif claim.epsilon_micro is None:
        yield f"{owner} took part in runs without noise: no bound holds for what remains of it."
    else:
        yield (
            f"What {owner} released into shared parameters remains, bounded by the epsilon of its "
            f"ledger: {claim.epsilon_micro / EPSILON_UNITS:g} (noise: {claim.noise})."
        )
    yield (
        f"Models that were composed, tuned, merged or distilled with {owner}'s experts outside "
        "this registry keep them or their influence."
    )
    if distilled:
        anew = sum(each.replaced_by is not None for each in distilled)
        yield (
            f"{len(distilled)} of the revoked artefacts were distilled from a teacher with "
            f"{owner}'s experts, and copies of them keep what it taught. {anew} of them were "
            "distilled anew, from the reduced model on public text alone; the others are revoked "
            "only."
        )


def signed_receipt(receipt: Receipt, key: IdentityKey) -> bytes:
    """Return the receipt as a signed statement about the files that did not change."""
    return attest(key, receipt.unchanged, PREDICATE, receipt.model_dump(mode="json"))


def verify_receipt(
    path: Path,
    signer: str | None = None,
    model: Path | None = None,
    registry: Path | None = None,
) -> tuple[Receipt, str]:
    """Check a receipt.

    1. The signature holds, by the expected signer. 2. The model's folder, if given, has every file
    that did not change, none that was removed, and does not name the owner. 3. In the registry, if
    given, every artefact is revoked and gone, and its replacement holds none of the owner's.

    Args:
        signer: fingerprint obtained out of band; None accepts any.

    Returns:
        The receipt, and the signer's fingerprint.

    Raises:
        AttestationError: 1 does not hold.
        ReceiptError: 2 or 3 does not hold, with all that is wrong.

    """
    attested = verify_attestation(path.read_bytes(), PREDICATE, signer)  # 1
    try:
        receipt = Receipt.model_validate(attested.predicate)
    except ValidationError as error:
        raise ReceiptError(
            f"Expected a withdrawal's receipt in {path}, got {error.errors()[0]['msg']}. Ask the "
            "signer."
        ) from error
    wrong = []
    if dict(attested.files) != receipt.unchanged:
        wrong.append("the statement is about other files than the receipt names")
    if model is not None:
        wrong += _wrong_in_model(receipt, model)  # 2
    if registry is not None:
        wrong += _wrong_in_registry(receipt, registry)  # 3
    if wrong:
        raise ReceiptError(
            f"Expected what the receipt says, got: {'; '.join(wrong)}. Withdraw again, or ask the "
            "signer."
        )
    return receipt, attested.signer


def _wrong_in_model(receipt: Receipt, model: Path) -> Iterator[str]:
    files = digests_below(model)
    for name, digest in receipt.unchanged.items():
        if files.get(name) != digest:
            yield f"{name} is missing or changed"
    if there := sorted(n for n, d in files.items() if d in set(receipt.removed.values())):
        yield f"{there[0]} holds what was removed"
    if receipt.owner in {entry.owner for entry in read_manifest(model).modules}:
        yield f"the model has a module of {receipt.owner!r}"


def _wrong_in_registry(receipt: Receipt, registry: Path) -> Iterator[str]:
    entries = {each.digest: each for each in read_index(registry).artefacts}
    for each in receipt.revoked or ():
        short = each.artefact[:12]
        if each.artefact not in entries or entries[each.artefact].is_active:
            yield f"artefact {short} is not revoked"
        if artefact_path(registry, each.artefact).exists():
            yield f"artefact {short} still lies there"
        if each.replaced_by is not None:
            other = entries.get(each.replaced_by)
            if other is None or receipt.owner in other.owners:
                yield f"artefact {each.replaced_by[:12]} is unknown or holds the owner's experts"


def digests_below(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}
