"""What is claimed of private text in an artefact, and what an attack on it shows."""

from pydantic import Field

from models.names import Digest
from models.variants.frozen import Frozen


class LedgerClaim(Frozen):
    """What verified ledgers say that training the parent cost.

    Attributes:
        node: whose ledger. root: Merkle root, hex, of its `entries`. epsilon_micro: millionths,
            all runs together; null where a run had no noise. delta_1e15: units of 1e-15.
        names_parent: a coordinator's ledger says that this very parent was released.

    """

    node: str
    entries: int
    root: Digest
    epsilon_micro: int | None
    delta_1e15: int
    noise: str
    names_parent: bool


class Audited(Frozen):
    """An attack on this very artefact, by canaries that a fair coin put into its training.

    Attributes:
        canaries: of which `included` were in. tries: other candidates that each was held against.
        epsilon_at_least: at `delta`, with `confidence`: (epsilon, delta)-DP with less is refuted.
        guessed, correct: of the attack. most_it_can_show: had every guess been right.
        secrets: SHA-256 of the auditor's list.

    """

    canaries: int = Field(gt=0)
    included: int = Field(ge=0)
    tries: int = Field(gt=0)
    delta: float = Field(ge=0, lt=1)
    confidence: float = Field(gt=0, lt=1)
    epsilon_at_least: float = Field(ge=0, allow_inf_nan=False)
    guessed: int = Field(ge=0)
    correct: int = Field(ge=0)
    most_it_can_show: float = Field(ge=0, allow_inf_nan=False)
    secrets: Digest
