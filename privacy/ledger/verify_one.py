"""Checks one ledger offline, on a machine that knows only the pinned keys."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from privacy.identity import Signed, fingerprint
from privacy.ledger.budget import ModuleSpend, check_node_entries
from privacy.ledger.entries import Entry, LedgerKind, parse_entry
from privacy.ledger.files import Lines, read_lines
from privacy.ledger.head import (
    Countersignature,
    TreeHead,
    parse_signed_line,
    parse_statement,
    verify_countersignature,
    verify_head,
)
from privacy.ledger.history import check_coordinator_entries
from privacy.ledger.log import COUNTERSIGNATURES_FILE, ENTRIES_FILE, HEADS_FILE
from privacy.ledger.merkle import MerkleTree, leaf_hash
from privacy.ledger.pins import Pin, Pins
from privacy.ledger.plans import PLANS_FILE, check_plans
from privacy.ledger.spends import RunSpend


@dataclass(frozen=True)
class LedgerReport:
    """What was found in one ledger.

    Attributes:
        name: owner, as its signed heads say ("unknown" if there is none).
        kind: "node" or "coordinator" by the pinned keys; None if nothing is pinned.
        entries: number of intact entries.
        heads: number of signed heads.
        countersignatures: number of other members' signatures under heads.
        runs: cost of every run (a node's ledger).
        run_count: number of runs, in a ledger of either kind.
        rounds: rounds recorded (a coordinator's ledger).
        epsilon_micro: all runs together, millionths (under a filter its budget); None where a run
            has no noise.
        delta_1e15: all runs together, units of 1e-15.
        noise: "csprng", "seeded, not private", or "-" where the ledger has none.
        key_fingerprint: of the key that the heads were checked against.
        roots: Merkle roots, hex: `roots[n]` is that of the first n entries.
        plans: plan digests that a node debited.
        modules: modules of owned experts that a node debited, by the digest of their weights.
        jobs: digests of the jobs that a node reserved for such modules.
        survivors: members by plan digest, of a coordinator's recorded rounds.
        signed_plans: number of plans beside a coordinator's ledger that its key signed.
        failures: what is wrong, in words; empty if the ledger holds.
        notes: what is worth knowing and not wrong.

    """

    name: str
    directory: Path
    kind: LedgerKind | None = None
    entries: int = 0
    heads: int = 0
    countersignatures: int = 0
    runs: tuple[RunSpend, ...] = ()
    run_count: int = 0
    rounds: int = 0
    epsilon_micro: int | None = 0
    delta_1e15: int = 0
    noise: str = "-"
    key_fingerprint: str = ""
    roots: tuple[str, ...] = ()
    plans: frozenset[str] = frozenset()
    modules: Mapping[str, ModuleSpend] = field(default_factory=dict)
    jobs: frozenset[str] = frozenset()
    survivors: tuple[tuple[str, tuple[str, ...]], ...] = ()
    signed_plans: int = 0
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.failures


@dataclass
class _Reading:
    """What was read of a ledger so far."""

    directory: Path
    pins: Pins
    entries: list[Entry] = field(default_factory=list)
    tree: MerkleTree = field(default_factory=MerkleTree)
    heads: list[TreeHead] = field(default_factory=list)
    countersignatures: int = 0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.heads[-1].ledger if self.heads else "unknown"

    @property
    def pin(self) -> Pin | None:
        return self.pins.get(self.name)


def verify_ledger(directory: Path, pins: Pins) -> LedgerReport:
    """Check one ledger; nothing in its folder is changed.

    1. Every line is canonical, well-formed by its kind, and has the index of its place. 2. Every
    head is signed by the owner's pinned key, of one ledger, and its root is that of the entries
    (so that every head extends the one before). 3. The last head covers all entries, or the rest
    is noted. 4. Countersignatures by pinned members are of this history. 5. The entries obey
    the rules of `check_node_entries` or `check_coordinator_entries`. 6. Signed plans that lie
    beside a coordinator's ledger are those that its entries name.

    Args:
        directory: folder with `entries.jsonl`.
        pins: keys that are trusted, by name.

    Returns:
        A report; `is_ok` tells the verdict.

    """
    reading = _Reading(directory, pins)
    _read_entries(reading)  # 1
    _read_heads(reading)  # 2
    _check_cover(reading)  # 3
    _read_countersignatures(reading)  # 4
    report = _with_rules(reading)  # 5
    return _with_plans(report, reading) if report.kind == "coordinator" else report  # 6


def _lines(reading: _Reading, file_name: str) -> Lines:
    lines = read_lines(reading.directory / file_name)
    if lines.torn_bytes:
        reading.notes.append(
            f"{file_name}: a torn last line of {lines.torn_bytes} bytes, never acknowledged"
        )
    return lines


def _read_entries(reading: _Reading) -> None:
    for number, line in enumerate(_lines(reading, ENTRIES_FILE).complete):
        try:
            entry = parse_entry(line)
        except ValueError as error:
            reading.failures.append(f"{ENTRIES_FILE} line {number + 1} is damaged: {error}")
            return
        if entry.index != number:
            reading.failures.append(
                f"{ENTRIES_FILE} line {number + 1} has index {entry.index}: entries were dropped "
                "or reordered"
            )
            return
        reading.entries.append(entry)
        reading.tree.append(leaf_hash(line))


def _read_heads(reading: _Reading) -> None:
    for number, line in enumerate(_lines(reading, HEADS_FILE).complete, start=1):
        try:
            signed = parse_signed_line(line)
            head = parse_statement(signed.payload, TreeHead)
        except ValueError as error:
            reading.failures.append(f"{HEADS_FILE} line {number} is damaged: {error}")
            return
        reading.failures.extend(f"head {number}: {why}" for why in _faults(reading, signed, head))
        reading.heads.append(head)


def _faults(reading: _Reading, signed: Signed, head: TreeHead) -> Iterator[str]:
    """Tell what is wrong with a head, given the entries and the heads before it."""
    before = reading.heads[-1] if reading.heads else None
    pin = reading.pins.get(head.ledger)
    if pin is None:
        yield f"no key is pinned for the ledger {head.ledger!r}"
    elif not _is_signed(pin.key, signed):
        yield f"not signed by the pinned key of {head.ledger!r}"
    if before is not None and before.ledger != head.ledger:
        yield f"it is of {head.ledger!r}, and the one before of {before.ledger!r}"
    if before is not None and head.size <= before.size:
        yield f"forked: it covers {head.size} entries after one of {before.size}"
    if head.size > reading.tree.size:
        yield (
            f"it covers {head.size} entries, and {reading.tree.size} are there: entries were "
            "dropped from the end"
        )
    elif head.root != reading.tree.root(head.size).hex():
        yield (
            f"its root is not that of the first {head.size} entries: an entry was altered, "
            "dropped or reordered after signing, or the ledger forked"
        )


def _is_signed(public_key: bytes, signed: Signed) -> bool:
    try:
        verify_head(public_key, signed)
    except ValueError:
        return False
    return True


def _check_cover(reading: _Reading) -> None:
    if not reading.heads:
        reading.failures.append("no signed head: nothing here is signed")
        return
    after = reading.tree.size - reading.heads[-1].size
    if after > 0:
        reading.notes.append(f"{after} entries after the last signed head")


def _read_countersignatures(reading: _Reading) -> None:
    lines = _lines(reading, COUNTERSIGNATURES_FILE).complete
    for number, line in enumerate(lines, start=1):
        try:
            signed = parse_signed_line(line)
            statement = parse_statement(signed.payload, Countersignature)
            pin = reading.pins.get(statement.witness)
            if pin is None:
                reading.notes.append(f"no key is pinned for the witness {statement.witness!r}")
                continue
            verify_countersignature(pin.key, signed)
        except ValueError as error:
            reading.failures.append(f"{COUNTERSIGNATURES_FILE} line {number} is damaged: {error}")
            continue
        if not _is_of_history(reading, statement):
            reading.failures.append(
                f"forked: {statement.witness!r} countersigned another history of "
                f"{statement.size} entries, and {reading.tree.size} are there"
            )
        reading.countersignatures += 1


def _is_of_history(reading: _Reading, statement: Countersignature) -> bool:
    return (
        statement.ledger == reading.name
        and statement.size <= reading.tree.size
        and statement.root == reading.tree.root(statement.size).hex()
    )


def _with_rules(reading: _Reading) -> LedgerReport:
    """Apply the rules of the ledger's kind, and put the report together."""
    pin = reading.pin
    report = LedgerReport(
        name=reading.name,
        directory=reading.directory,
        kind=pin.kind if pin else None,
        entries=reading.tree.size,
        heads=len(reading.heads),
        countersignatures=reading.countersignatures,
        key_fingerprint=fingerprint(pin.key) if pin else "",
        roots=tuple(reading.tree.root(size).hex() for size in range(reading.tree.size + 1)),
        failures=tuple(reading.failures),
        notes=tuple(reading.notes),
    )
    if pin is None:
        return report
    if pin.kind == "node":
        return _with_budget(report, reading.entries)
    return _with_history(report, reading.entries)


def _with_plans(report: LedgerReport, reading: _Reading) -> LedgerReport:
    assert reading.pin is not None, "its kind is the pin's"
    found = check_plans(_lines(reading, PLANS_FILE).complete, reading.pin.key, reading.entries)
    return replace(
        report,
        signed_plans=len(found.plans),
        failures=(*report.failures, *found.failures),
        notes=(*report.notes, *found.notes),
    )


def _with_budget(report: LedgerReport, entries: list[Entry]) -> LedgerReport:
    found = check_node_entries(entries)
    epsilon_micro, delta_1e15 = found.total()
    return replace(
        report,
        runs=tuple(found.runs),
        run_count=len(found.runs),
        epsilon_micro=epsilon_micro,
        delta_1e15=delta_1e15,
        noise=", ".join(sorted(found.noises, reverse=True)) or "-",
        plans=frozenset(found.plans),
        modules=found.modules,
        jobs=frozenset(found.jobs),
        failures=(*report.failures, *found.failures),
    )


def _with_history(report: LedgerReport, entries: list[Entry]) -> LedgerReport:
    found = check_coordinator_entries(entries)
    return replace(
        report,
        run_count=found.runs,
        rounds=found.rounds,
        survivors=tuple(found.survivors.items()),
        failures=(*report.failures, *found.failures),
    )
