"""The signed plan of a round: everything that its members must agree on.

The coordinator builds and signs it; `privacy.rounds.verify_plan` decides on it. Symbols: n members
of a group, c colluders, h = n_min - c, k degree, t least neighbours, m committee, q quorum.
"""

import hashlib
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError

from privacy.canonical import CanonicalError, canonical_bytes
from privacy.dp.plan import PlanError, PrivateStep
from privacy.identity import IdentityKey, Signed
from privacy.secagg.parameters import GraphParameters

_LARGEST_PAYLOAD_BYTES = 1 << 20

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1, lt=2**53)]


class PlanCode(StrEnum):
    """Why a plan was refused; goes over the wire."""

    BAD_SIGNATURE = "bad-signature"
    NOT_CANONICAL = "not-canonical"
    WRONG_FEDERATION = "wrong-federation"
    WRONG_RUNTIME = "wrong-runtime"
    WRONG_ROSTER = "wrong-roster"
    OLD_ROUND = "old-round"
    BAD_COHORT = "bad-cohort"
    COHORT_TOO_SMALL = "cohort-too-small"
    TOO_FEW_COLLUDERS = "too-few-colluders"
    BAD_GRAPH = "bad-graph"
    WRONG_SURVIVORS = "wrong-survivors"
    WRONG_UNIT = "wrong-unit"
    NO_NOISE = "no-noise"
    WRONG_EVENT = "wrong-event"
    COARSE_LATTICE = "coarse-lattice"
    WRONG_LENGTH = "wrong-length"
    NOT_TRAINABLE = "not-trainable"
    SEEDED = "seeded"
    WRONG_RECIPE = "wrong-recipe"
    WRONG_MODEL = "wrong-model"
    FORKED_LEDGER = "forked-ledger"
    RESTORED_LEDGER = "restored-ledger"
    OVER_BUDGET = "over-budget"
    EXPIRED = "expired"
    CONSENT_CHANGED = "consent-changed"
    OWNED_EXPERTS = "owned-experts"


class PlanRefused(ValueError):  # noqa: N818  (a refusal is an outcome of the protocol)
    """A plan that this node does not take part in.

    Attributes:
        code: fixed code of the case.
        clause: clause of the consent that decides it, or "" where the protocol does.

    """

    def __init__(self, code: PlanCode, clause: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.clause = clause


class RoundPlan(BaseModel):
    """Everything that a round's members must agree on; the coordinator signs its bytes.

    Attributes:
        federation: identifier of the federation.
        run: identifier of the run; a run reserves one schedule.
        epoch: number of the key epoch.
        round: 1, 2, ... within the run, at most `step.releases`.
        attempt: 1 to 3 within the round; each draws a new sample, new noise and is charged.
        roster_digest: of the epoch's verified key bundles, hex.
        model_digest: of the parameters that the update refers to, hex.
        recipe_digest: of the local training recipe and its parameters, hex.
        trainable: (tensor name, element count) in the vector's order.
        vector_length: words of an upload.
        cohort: all members of the epoch's roster, sorted.
        groups: number of random groups, each summed for itself; a divisor of the cohort's size.
        degree, least_neighbours, committee, quorum: k, t, m and q of `GraphParameters`, in a group.
        n_min: least number of members in a group's sum.
        colluders: c, members that may conspire with the coordinator, should all be in one group.
        step: the mechanism.
        dp_event: `step.event_json()`, which every node computes again.
        runtime: where the round runs.
        seeded: noise that anyone can recompute; for simulations.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    version: Literal[1] = 1
    federation: Text
    run: Text
    epoch: Count
    round: Count
    attempt: Count
    roster_digest: Digest
    model_digest: Digest
    recipe_digest: Digest
    trainable: tuple[tuple[Text, Count], ...] = Field(min_length=1)
    vector_length: Count
    cohort: tuple[Name, ...] = Field(min_length=1)
    groups: Count = 1
    degree: Count
    least_neighbours: Count
    committee: Count
    quorum: Count
    n_min: Count
    colluders: Count
    step: PrivateStep
    dp_event: JsonValue
    runtime: Literal["simulate", "arion-grpc", "flower"]
    seeded: bool = False

    @property
    def parameters(self) -> GraphParameters:
        """Who masks with whom."""
        return GraphParameters(self.degree, self.least_neighbours, self.committee, self.quorum)

    @property
    def group_size(self) -> int:
        """Members of a group, n."""
        return len(self.cohort) // self.groups

    @property
    def is_sparse(self) -> bool:
        """Whether pairs are left out, so that privacy of the sum rests on a probability."""
        return self.degree < self.group_size - 1

    def payload(self) -> bytes:
        """Return the canonical bytes that are signed."""
        return self._payload

    def digest(self) -> bytes:
        """Return the SHA-256 of `payload()`, 32 bytes: the round's name in every message."""
        return self._digest

    @cached_property
    def _payload(self) -> bytes:
        return canonical_bytes(self.model_dump(mode="json"))

    @cached_property
    def _digest(self) -> bytes:
        return hashlib.sha256(self._payload).digest()

    @classmethod
    def from_payload(cls, payload: bytes) -> "RoundPlan":
        """Read a plan, and refuse every spelling but the canonical one.

        Raises:
            PlanRefused: with code NOT_CANONICAL.

        """
        try:
            if len(payload) > _LARGEST_PAYLOAD_BYTES:
                _refuse_bytes(f"{len(payload)} bytes")
            plan = cls.model_validate_json(payload)
            canonical = plan.payload()
        except (CanonicalError, ValidationError, PlanError) as error:
            _refuse_bytes(type(error).__name__)
        # Also refuses duplicate keys, other spellings of numbers, and defaults left out.
        if canonical != payload:
            _refuse_bytes("another spelling of one")
        return plan


def sign_plan(key: IdentityKey, plan: RoundPlan) -> Signed:
    """Sign a plan with the coordinator's identity key."""
    return key.sign("plan", plan.payload())


def _refuse_bytes(got: str) -> NoReturn:
    raise PlanRefused(
        PlanCode.NOT_CANONICAL,
        "",
        f"Expected the canonical bytes of a round plan, got {got}. "
        "Check that node and coordinator run the same version.",
    )
