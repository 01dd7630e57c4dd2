"""What is withdrawn, and what there was before: kept beside the receipt until that is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pydantic import BaseModel, ConfigDict
from scipy.stats import combine_pvalues

from arion.audit_secrets import PlantedSecret, audit_secrets
from arion.receipt import Exposures, digests_below
from client.entropy import Entropy
from models.composition import Ownership
from models.modular import read_manifest
from models.names import Digest, OwnerName
from models.owned import OwnedError
from models.variants.extras import VariantError
from models.variants.index import read_index
from models.variants.parent import Parent, open_parent
from models.variants.passport import Passport
from models.variants.registry import passport_of

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


class Before(BaseModel):
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


def read_before(order: WithdrawalOrder, secrets: Sequence[PlantedSecret]) -> Before:
    """Say what there is, or read what a call that was interrupted wrote down.

    Raises:
        VariantError: another owner's withdrawal was begun under this receipt's name.
        OwnedError: the owner has no module in the model.

    """
    journal = journal_of(order)
    if journal.exists():
        found = Before.model_validate_json(journal.read_bytes())
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
    return Before(
        owner=order.owner,
        base_digest=parent.ownership.base_digest,
        model_digest=parent.digest,
        files=files,
        removed={name: digest for name, digest in files.items() if digest in gone},
        ownership=parent.ownership,
        artefacts=_affected(order, entry.weights_digest),
        exposures=exposures_of(parent, secrets),
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


def exposures_of(parent: Parent, secrets: Sequence[PlantedSecret]) -> Exposures | None:
    """How well a model knows planted secrets; None where none were planted."""
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


def journal_of(order: WithdrawalOrder) -> Path:
    """Where what there was is written down while a withdrawal is unfinished."""
    return order.receipt.with_name(order.receipt.name + ".unfinished")
