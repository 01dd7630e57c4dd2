"""The consent of an institution: what its node may do, in a file that its officers sign off.

`consent.toml` is read once, checked clause by clause, and enforced by the node; nothing that the
coordinator sends can widen it. Every error names the clause.
"""

import re
import tomllib
from collections.abc import Iterable
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from models.faults import meant
from privacy.canonical import canonical_bytes, sha256_hex
from privacy.dp.plan import SMALLEST_DELTA
from privacy.secagg.parameters import LARGEST_COMPLETE, LARGEST_SPARSE, smallest_roster
from privacy.units import INSTITUTION, RECORD

LARGEST_DELTA = 1e-3


class ConsentError(ValueError):
    """A consent that cannot be enforced as written, or an act that it does not allow.

    Attributes:
        clause: name of the clause in `consent.toml`.

    """

    def __init__(self, clause: str, message: str) -> None:
        super().__init__(f"Consent clause {clause!r}: {message}")
        self.clause = clause


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _as_date(value: object) -> object:
    """Take a date written as a TOML date or as a string."""
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value):
        return date.fromisoformat(value)
    return value


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}$")]
PublicKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
Runtime = Literal["simulate", "arion-grpc", "flower"]
Runtimes = Annotated[tuple[Runtime, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
PositiveBudget = Annotated[float, Field(gt=0)]


class Consent(BaseModel):
    """What an institution agreed to; the content of `consent.toml`.

    Attributes:
        federation: identifier of the federation.
        coordinator_key: Ed25519 key that signs round plans, hex; compared out of band.
        members: pinned identity keys of all members by name, hex; compared out of band.
        purposes: what the trained model is for.
        data_set: name of the data that may be used.
        unit: whose data epsilon protects: "record", the field that names it, e.g. "patient", or
            "institution": all that this member holds, as one.
        accountant: "schedule" charges a run's whole schedule (PLD) before its first release;
            "filter" charges each release when it is made (RDP).
        epsilon: budget for the life of the unit-key space, all runs together.
        delta: the same for delta; below 1e-3.
        epsilon_per_run: budget of one run, at most `epsilon`.
        epsilon_if_all_others_collude: the same for one run, if every other member conspires.
        smallest_cohort: least number of members in a sum (n_min), at least 2.
        tolerated_colluders: members that may conspire without weakening epsilon (c), at least 1.
        sparse_graph: whether sums may be over a random graph, which more than 50 members need.
        post_quantum: whether pairwise secrets must also rest on ML-KEM-768.
        trainable: glob patterns of the tensors that may be trained.
        owned_experts_may_leave: whether experts trained here may be released on their own.
        runtimes: where the node may run.
        expires: last day on which the node takes part.
        keep_data_sets_apart: each unit counts with the data set it was first used under and is
            left out of the others, so that what is spent on one need not be added to another.
        allow_unprotected_release: runs without noise, for data that is not private.
        allow_seeded_simulation: simulations whose noise anyone can recompute.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    federation: Text
    coordinator_key: PublicKey
    members: dict[Name, PublicKey] = Field(min_length=2, max_length=LARGEST_SPARSE)
    purposes: Texts
    data_set: Text
    unit: Text
    accountant: Literal["schedule", "filter"]
    epsilon: PositiveBudget
    delta: float = Field(gt=0, lt=LARGEST_DELTA)
    epsilon_per_run: PositiveBudget
    epsilon_if_all_others_collude: PositiveBudget
    smallest_cohort: int = Field(ge=2)
    tolerated_colluders: int = Field(ge=1)
    sparse_graph: bool = False
    post_quantum: bool = False
    trainable: Texts
    owned_experts_may_leave: bool = False
    runtimes: Runtimes
    expires: Annotated[date, BeforeValidator(_as_date)]
    keep_data_sets_apart: bool = False
    allow_unprotected_release: bool = False
    allow_seeded_simulation: bool = False

    @model_validator(mode="after")
    def _clauses_agree(self) -> Self:
        self._check_numbers()
        self._check_graph()
        self._check_filter()
        self._check_unit()
        self._check_apart()
        self._check_keys()
        return self

    def digest(self) -> str:
        """Return the SHA-256 of the canonical consent, hex: what the ledger records."""
        return sha256_hex(canonical_bytes(self.model_dump(mode="json")))

    @property
    def smallest_roster(self) -> int:
        """How many of the members must be in an epoch; the others are away."""
        least = smallest_roster(len(self.members), self.tolerated_colluders)
        return max(least, self.smallest_cohort)

    def allows_trainable(self, names: Iterable[str]) -> bool:
        """Tell whether every tensor name matches a pattern of the clause `trainable`."""
        return all(any(fnmatchcase(name, glob) for glob in self.trainable) for name in names)

    def check_not_expired(self, today: date) -> None:
        """Raise ConsentError after the last day of the clause `expires`."""
        if today > self.expires:
            raise ConsentError(
                "expires",
                f"Expected a day until {self.expires}, got {today}. Have a new consent signed off "
                "before the node takes part again.",
            )

    def _check_numbers(self) -> None:
        share = self.delta * self.epsilon_per_run / self.epsilon
        if self.accountant == "schedule" and share < SMALLEST_DELTA:
            raise ConsentError(
                "delta",
                f"Expected delta * epsilon_per_run / epsilon, the delta of one run, of at least "
                f"{SMALLEST_DELTA:g}, below which no accountant here bounds epsilon, got "
                f"{share:.3g}. Raise delta, or epsilon_per_run for fewer runs.",
            )
        if self.epsilon_per_run > self.epsilon:
            raise ConsentError(
                "epsilon_per_run",
                f"Expected at most epsilon = {self.epsilon:g}, got {self.epsilon_per_run:g}. "
                "Lower it, or raise epsilon.",
            )
        if self.epsilon_if_all_others_collude < self.epsilon_per_run:
            raise ConsentError(
                "epsilon_if_all_others_collude",
                f"Expected at least epsilon_per_run = {self.epsilon_per_run:g}, got "
                f"{self.epsilon_if_all_others_collude:g}: conspirators never weaken what they "
                "learn. Raise it, or lower epsilon_per_run.",
            )
        if self.smallest_cohort > len(self.members):
            raise ConsentError(
                "smallest_cohort",
                f"Expected at most the {len(self.members)} members, got {self.smallest_cohort}. "
                "Lower it, or pin more members.",
            )
        if self.tolerated_colluders >= self.smallest_cohort:
            raise ConsentError(
                "tolerated_colluders",
                f"Expected fewer than smallest_cohort = {self.smallest_cohort}, got "
                f"{self.tolerated_colluders}. Raise smallest_cohort, or lower it.",
            )

    def _check_graph(self) -> None:
        """Refuse sizes that need a sparse graph, and what does not go with one."""
        members = len(self.members)
        if members > LARGEST_COMPLETE and not self.sparse_graph:
            raise ConsentError(
                "members",
                f"Expected at most {LARGEST_COMPLETE} members, got {members}. Pin fewer, or allow "
                "a random graph: sparse_graph = true.",
            )
        if members > LARGEST_COMPLETE and self.post_quantum:
            raise ConsentError(
                "post_quantum",
                f"Expected at most {LARGEST_COMPLETE} members for secrets with ML-KEM-768, got "
                f"{members}. Pin fewer, or set post_quantum = false.",
            )

    def _check_filter(self) -> None:
        """Refuse what a filter has no way to charge."""
        if self.accountant != "filter":
            return
        never = ("owned_experts_may_leave", "allow_unprotected_release", "sparse_graph")
        for clause in never:
            if getattr(self, clause):
                raise ConsentError(
                    clause,
                    f'Expected {clause} = false under accountant = "filter", which '
                    "charges noised rounds over a complete graph only, got true. Set it to "
                    'false, or choose accountant = "schedule".',
                )

    def _check_unit(self) -> None:
        """Refuse what does not clip the institution as a whole."""
        if self.unit == INSTITUTION and self.owned_experts_may_leave:
            raise ConsentError(
                "owned_experts_may_leave",
                f"Expected owned_experts_may_leave = false under unit = {INSTITUTION!r}, got true: "
                "a module's training clips each record or each field's value alone. Set it to "
                "false, or choose such a unit.",
            )

    def _check_apart(self) -> None:
        """Refuse what gives the node no keys to tell units by, or counts all data together."""
        if self.keep_data_sets_apart and (
            self.unit in {RECORD, INSTITUTION} or self.accountant == "filter"
        ):
            raise ConsentError(
                "keep_data_sets_apart",
                f'Expected a field of the data as the unit and accountant = "schedule", got unit '
                f"{self.unit!r} and accountant {self.accountant!r}: without a field's keys nothing "
                "tells units apart, and a filter charges all data sets together. Set it to false.",
            )

    def _check_keys(self) -> None:
        names: dict[str, str] = {}
        for name, key in self.members.items():
            if key in names:
                raise ConsentError(
                    "members",
                    f"Expected a key of its own for every member, got one key for {names[key]!r} "
                    f"and {name!r}. Ask both institutions for their fingerprints.",
                )
            names[key] = name
        if self.coordinator_key in names:
            raise ConsentError(
                "coordinator_key",
                f"Expected a key that no member holds, got the key of "
                f"{names[self.coordinator_key]!r}. Ask the coordinator for its fingerprint.",
            )


def load_consent(path: Path) -> Consent:
    """Read and check a `consent.toml`.

    Raises:
        ConsentError: unreadable, not TOML, or a clause that is missing, unknown, out of its range
            or at odds with another; the message names the clause and the remedy.

    """
    try:
        clauses = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConsentError(
            "(file)", f"Expected a readable {path.name}, got {error.strerror}. Check the path."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConsentError(
            "(file)", f"Expected TOML in {path.name}, got an error: {error}. Mend that line."
        ) from error
    return parse_consent(clauses)


def parse_consent(clauses: dict[str, object]) -> Consent:
    """Check clauses that were already read; raises ConsentError as `load_consent` does."""
    try:
        return Consent.model_validate(clauses)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, ConsentError):
            raise cause from error
        clause = ".".join(str(part) for part in first["loc"])
        said = _explained(first["type"], first["msg"], first["loc"])
        raise ConsentError(clause, said) from error


def _explained(kind: str, message: str, place: tuple[int | str, ...]) -> str:
    if kind == "missing":
        return "Expected this clause, got none. Add it: nothing is assumed in its place."
    if kind == "extra_forbidden":
        other = f"got another name{meant(place, Consent)}"
        return f"Expected a clause that Arion knows, {other}. Check its spelling."
    return f"{message}. Correct its value."
