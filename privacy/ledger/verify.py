"""Offline verification: all ledgers below a folder, and whether they agree with each other."""

from collections import ChainMap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from privacy.ledger.entries import LedgerError
from privacy.ledger.head import TreeHead, parse_signed_line, parse_statement, verify_head
from privacy.ledger.log import ENTRIES_FILE
from privacy.ledger.modules import find_modules, module_faults
from privacy.ledger.pins import Pins
from privacy.ledger.verify_one import LedgerReport, verify_ledger

__all__ = ["WITNESS_SUFFIX", "LedgerReport", "verify_ledger", "verify_tree"]

WITNESS_SUFFIX = ".witness.json"
"""Ending of the file that a `HeadWitness` keeps, so that it is held against its ledger."""


def verify_tree(root_dir: Path, pins: Pins) -> list[LedgerReport]:
    """Check every ledger below a folder.

    Beyond `verify_ledger`: 1. copies of one ledger have one history; 2. a head that a node kept as
    a witness (`*.witness.json`) is of that history; 3. every survivor that the coordinator counted
    in a round has debited that round's plan; 4. every module of owned experts that claims an
    epsilon was debited by its owner, as it is. Each is checked where the other file is at hand.

    Args:
        root_dir: folder of a node, of a coordinator or of a whole run.
        pins: keys that are trusted, by name.

    Returns:
        One report for each ledger, in the order of their folders.

    Raises:
        LedgerError: there is no ledger below the folder.

    """
    directories = sorted({path.parent for path in root_dir.rglob(ENTRIES_FILE)})
    if not directories:
        raise LedgerError(
            f"Expected a folder that holds {ENTRIES_FILE}, got {root_dir} without one below it. "
            "Give the folder of a node, of a coordinator or of a whole run."
        )
    reports = [verify_ledger(directory, pins) for directory in directories]
    witnessed = sorted(root_dir.rglob(f"*{WITNESS_SUFFIX}"))
    modules = find_modules(root_dir)
    return [_with_others(report, reports, witnessed, modules, pins) for report in reports]


def _with_others(
    report: LedgerReport,
    reports: Sequence[LedgerReport],
    witnessed: Sequence[Path],
    modules: Sequence[Path],
    pins: Pins,
) -> LedgerReport:
    """Add what only shows in comparison with the other files."""
    failures = (
        *report.failures,
        *_forks(report, reports),  # 1
        *_contradicted_heads(report, witnessed, pins),  # 2
        *_missing_debits(report, reports),  # 3
        *_foul_modules(report, reports, modules),  # 4
    )
    return replace(report, failures=failures)


def _forks(report: LedgerReport, reports: Sequence[LedgerReport]) -> Iterator[str]:
    for other in reports:
        if other is report or other.name != report.name or report.kind is None:
            continue
        size = min(report.entries, other.entries)
        if report.roots[size] != other.roots[size]:
            yield f"forked: {other.directory} shows another history of {report.name!r}"


def _contradicted_heads(
    report: LedgerReport, witnessed: Sequence[Path], pins: Pins
) -> Iterator[str]:
    if report.kind is None:
        return
    for path in witnessed:
        try:
            signed = parse_signed_line(path.read_bytes().removesuffix(b"\n"))
            head = parse_statement(signed.payload, TreeHead)
            if head.ledger != report.name:
                continue
            verify_head(pins[report.name].key, signed)
        except ValueError:
            yield f"the head that {path} keeps is damaged or not signed by the pinned key"
            continue
        if head.size > report.entries or head.root != report.roots[head.size]:
            yield (
                f"forked: {path} keeps a signed head of another history of {head.size} entries, "
                f"and {report.entries} are there"
            )


def _missing_debits(report: LedgerReport, reports: Sequence[LedgerReport]) -> Iterator[str]:
    # A ledger that does not hold is reported as such; what it lacks says nothing of this one.
    debited: dict[str, frozenset[str]] = {}
    for other in reports:
        if other.kind == "node" and other.is_ok:
            debited[other.name] = debited.get(other.name, frozenset()) | other.plans
    for plan_digest, survivors in report.survivors:
        for name in survivors:
            if name in debited and plan_digest not in debited[name]:
                yield f"{name!r} is counted under plan {plan_digest[:12]} and never debited it"


def _foul_modules(
    report: LedgerReport, reports: Sequence[LedgerReport], modules: Sequence[Path]
) -> Iterator[str]:
    if report.kind != "node":
        return
    copies = [other for other in reports if other.name == report.name]
    debited = ChainMap(*(dict(copy.modules) for copy in copies))
    begun = frozenset().union(*(copy.jobs for copy in copies))
    done = frozenset().union(*(copy.plans for copy in copies))
    yield from module_faults(report.name, modules, debited, begun - done)
