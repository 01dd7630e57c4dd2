"""What a ledger may say: one frozen model for every kind of entry.

A node's ledger is the authority for its own budget; the coordinator's tells the history of the
model. Figures are integers rounded up: epsilon in millionths, delta in units of 1e-15.
"""

import math
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError

from models.faults import first_fault
from privacy.canonical import JsonLike, canonical_bytes, parse_canonical

EPSILON_UNITS = 10**6
DELTA_UNITS = 10**15

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Units = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,199})$")]
Noise = Literal["csprng", "seeded, not private"]
LedgerKind = Literal["node", "coordinator"]


def delta_units(delta: float) -> int:
    """Return `delta` (0 to 1) in units of 1e-15, rounded up: what an entry holds."""
    return math.ceil(Fraction(delta) * DELTA_UNITS)


class LedgerError(ValueError):
    """A ledger that is damaged, in use by another process, or asked to hold what it may not."""


class ForkError(LedgerError):
    """A ledger that showed two histories: entries changed or dropped after they were signed."""


class RestoredError(LedgerError):
    """A ledger that holds less than its own owner signed: an older state was put back."""


class Body(BaseModel):
    """Base of every entry's body: nothing in it changes, and nothing unknown goes in."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FederationJoined(Body):
    """A node bound itself to a federation under a consent."""

    federation: Text
    consent_digest: Digest
    noise: Noise


class Basis(Body):
    """What a charge depends on beside its event.

    Attributes:
        vector_length: coordinates of a release.
        contributors: upper bound on the members in one sum.
        noise_in_lattice_units: s.

    """

    vector_length: Positive
    contributors: Positive
    noise_in_lattice_units: float = Field(ge=3, le=1024)


class ScheduleBasis(Basis):
    """What a schedule's epsilon is computed from; see `privacy.dp.accountant.epsilon`.

    Attributes:
        is_sparse: whether 2^-40 of delta is for a random graph or a committee that fails.

    """

    is_sparse: bool = False


class RunReserved(Body):
    """A run's whole schedule, charged before its first release.

    Attributes:
        event: DP event of one release (`privacy.dp.events.event_json`); the schedule is `releases`
            of it. A module of owned experts is one release, its event that of its whole training.
        epsilon_micro: the schedule's epsilon in millionths, rounded up; None is a run without
            noise, for which no epsilon holds.
        delta_1e15: its delta in units of 1e-15, rounded up.
        job: digest of the one job that makes a module of owned experts; None for rounds.
        kept_apart: whether the node leaves out of this run every unit that it used under another
            data set's name, so that the run costs the units of its own data set only.
        basis: what anybody needs to compute the epsilon again; None without noise, and in ledgers
            of earlier versions, whose epsilon is held against a lower limit.

    """

    run: Text
    event: JsonValue
    releases: Positive
    epsilon_micro: Count | None
    delta_1e15: Count
    accountant: Literal["schedule"]
    unit: Text
    data_set: Text
    noise: Noise
    job: Digest | None = None
    kept_apart: bool = False
    basis: ScheduleBasis | None = None


class FilterOpened(Body):
    """A Rényi filter's budget, written before the first release that it is asked about.

    Attributes:
        epsilon_micro, delta_1e15: of the data's life, all runs together; rounded down.
        epsilon_per_run_micro, run_delta_1e15: of one run.
        epsilon_if_all_others_collude_micro: of one run, at `run_delta_1e15`.

    """

    epsilon_micro: Count
    delta_1e15: Count
    epsilon_per_run_micro: Count
    run_delta_1e15: Count
    epsilon_if_all_others_collude_micro: Count
    unit: Text
    data_set: Text


class FilterBasis(Basis):
    """What a release's charge is computed from; see `privacy.dp.rdp_filter.charge_of`.

    Attributes:
        honest_survivors: h.

    """

    honest_survivors: Positive


class FilterCharge(Body):
    """What one release costs a filter; integers as text, since some exceed 2^53.

    Attributes:
        rdp: at each of `privacy.dp.rdp_filter.ORDERS`, in units of 1e-12.
        slack: of the lattice, in units of 1e-12.
        tail: of the sampler, in units of 1e-100.

    """

    basis: FilterBasis
    rdp: tuple[Units, ...]
    slack: Units
    tail: Units


class ReleaseDebited(Body):
    """One release, written before it leaves the node; `sealed_digest` names its exact bytes.

    `charge` is what it costs a filter; None under a schedule, which was charged before.
    `unit_keys` is the state of the register by which the run's data is kept apart, if it is.
    """

    run: Text
    epoch: Count
    round: Positive
    attempt: Positive
    plan_digest: Digest
    sealed_digest: Digest
    event: JsonValue
    noise: Noise
    charge: FilterCharge | None = None
    unit_keys: Digest | None = None


class ExpertsDebited(Body):
    """A module of owned experts, written before it leaves the node.

    Attributes:
        owner: whose experts they are.
        plan_digest: of the job that was reserved, trained and released.
        sealed_digest: SHA-256 of the module's weights file, which its card names too.
        card_digest: SHA-256 of the card.
        event: DP event of the whole training, the one that was reserved.

    """

    run: Text
    owner: Name
    plan_digest: Digest
    sealed_digest: Digest
    card_digest: Digest
    event: JsonValue
    noise: Noise


class Refusal(Body):
    """A plan that the node turned down, and the clause that made it."""

    code: Text
    clause: Text
    plan_digest: Digest


class RunClosed(Body):
    """A run that makes no more releases; what it reserved stays charged."""

    run: Text


class RunOpened(Body):
    """The coordinator opened a run on a model."""

    run: Text
    federation: Text
    cohort: tuple[Name, ...]
    model_digest: Digest


class RoundRecorded(Body):
    """A round whose sum was applied: the model before and after it."""

    run: Text
    round: Positive
    attempt: Positive
    plan_digest: Digest
    survivors: tuple[Name, ...]
    model_digest_before: Digest
    model_digest_after: Digest
    event: JsonValue
    outcome: Text


class RoundAborted(Body):
    """An attempt that ended without a sum; it stays charged at the nodes that released."""

    run: Text
    round: Positive
    attempt: Positive
    plan_digest: Digest
    code: Text


class Release(Body):
    """A model or variant that was handed out."""

    run: Text
    name: Text
    model_digest: Digest


NODE_KINDS: dict[str, type[Body]] = {
    "federation-joined": FederationJoined,
    "run-reserved": RunReserved,
    "filter-opened": FilterOpened,
    "release-debited": ReleaseDebited,
    "experts-debited": ExpertsDebited,
    "refusal": Refusal,
    "run-closed": RunClosed,
}
COORDINATOR_KINDS: dict[str, type[Body]] = {
    "run-opened": RunOpened,
    "round-recorded": RoundRecorded,
    "round-aborted": RoundAborted,
    "release": Release,
}
KINDS = NODE_KINDS | COORDINATOR_KINDS


class Entry(BaseModel):
    """One line of a ledger: its position, its kind, and what it says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    index: Count
    kind: str
    body: JsonValue

    def payload(self) -> bytes:
        """Return the entry's canonical bytes: the leaf of the Merkle tree."""
        return canonical_bytes(self.model_dump(mode="json"))

    def parsed(self) -> Body:
        """Return the body as the model of its kind."""
        return parse_body(self.kind, self.body)


def make_entry(index: int, kind: str, body: Body | JsonLike) -> Entry:
    """Build an entry whose body fits its kind.

    Raises:
        LedgerError: an unknown kind, or a body that is not one of that kind.

    """
    if isinstance(body, Body):
        body = body.model_dump(mode="json")
    parsed = parse_body(kind, body)
    return Entry(index=index, kind=kind, body=parsed.model_dump(mode="json"))


def parse_body(kind: str, body: JsonLike) -> Body:
    """Read the body of an entry of this kind, or raise LedgerError naming kind and field."""
    if kind not in KINDS:
        raise LedgerError(f"Expected an entry kind out of {sorted(KINDS)}, got {kind!r}.")
    try:
        # Through JSON, so that strict fields still take a list for a tuple, and nothing else.
        return KINDS[kind].model_validate_json(canonical_bytes(body))
    except ValidationError as error:
        raise LedgerError(
            f"Expected a well-formed {kind!r} entry, got a bad field "
            f"{first_fault(error, 'body')}. "
            "Write entries with the models of privacy.ledger.entries."
        ) from error


def parse_entry(line: bytes) -> Entry:
    """Read one line of a ledger, without its newline; refuses all but the canonical spelling.

    Raises:
        ValueError: not canonical, not an entry, or a body that does not fit its kind.

    """
    try:
        entry = Entry.model_validate(parse_canonical(line))
    except ValidationError as error:
        raise LedgerError("Expected an entry {index, kind, body}, got other fields.") from error
    entry.parsed()
    return entry
