"""The signed plans behind a coordinator's entries: what each digest in its ledger stands for."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from privacy.canonical import parse_canonical
from privacy.identity import SignatureError, Signed, verify_signed
from privacy.ledger.entries import Entry, RoundAborted, RoundRecorded
from privacy.ledger.head import parse_signed_line, signed_line

PLANS_FILE = "plans.jsonl"
PLAN_DOMAIN = "plan"


@dataclass
class PlanCheck:
    """What was found.

    Attributes:
        plans: digests of the plans that are signed by the coordinator's key.
        failures: what is wrong, in words.
        notes: what is worth knowing and not wrong.

    """

    plans: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plan_lines(plans: Iterable[Signed]) -> bytes:
    """Write signed plans as the lines of a `plans.jsonl`."""
    return b"".join(signed_line(plan) + b"\n" for plan in plans)


def check_plans(lines: Sequence[bytes], key: bytes, entries: Sequence[Entry]) -> PlanCheck:
    """Hold plans against the entries that name them.

    1. The coordinator's key signed each. 2. What an entry says of a plan (run, round, attempt, and
    the DP event of a recorded round) is what the plan says. 3. An entry whose plan is not there is
    noted. A plan of an attempt that is under way has no entry yet.

    Args:
        lines: of a `plans.jsonl`; none where there is no such file, and then nothing is checked.
        key: pinned key of the coordinator, 32 bytes.
        entries: of its ledger, well-formed.

    """
    found = PlanCheck()
    said: dict[str, dict[str, object]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            signed = parse_signed_line(line)
            verify_signed(key, PLAN_DOMAIN, signed)  # 1
            plan = parse_canonical(signed.payload)
        except (ValueError, SignatureError):
            plan = None
        if not isinstance(plan, dict):  # what a key signs need not be a plan
            found.failures.append(f"{PLANS_FILE} line {number} is no plan signed by the pinned key")
            continue
        said[hashlib.sha256(signed.payload).hexdigest()] = dict(plan)
    found.plans = set(said)
    if lines:
        for entry in entries:
            _hold(found, entry, said)
    return found


def _hold(found: PlanCheck, entry: Entry, said: dict[str, dict[str, object]]) -> None:
    body = entry.parsed()
    if not isinstance(body, RoundRecorded | RoundAborted):
        return
    plan = said.get(body.plan_digest)
    if plan is None:  # 3
        found.notes.append(f"the plan of entry {entry.index} is not there")
        return
    for name, value in _claims(body):  # 2
        if plan.get(name) != value:
            found.failures.append(f"entry {entry.index} says another {name} than its plan")


def _claims(body: RoundRecorded | RoundAborted) -> Iterator[tuple[str, object]]:
    yield from (("run", body.run), ("round", body.round), ("attempt", body.attempt))
    if isinstance(body, RoundRecorded):
        yield "dp_event", body.event
