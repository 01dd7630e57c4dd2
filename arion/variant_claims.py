"""What verified ledgers say that training cost: a passport takes its epsilon from nowhere else."""

from pathlib import Path

from models.variants.claims import LedgerClaim
from privacy.ledger.entries import LedgerError, Release, parse_entry
from privacy.ledger.files import read_lines
from privacy.ledger.log import ENTRIES_FILE
from privacy.ledger.pins import PINS_FILE, load_pins
from privacy.ledger.verify import verify_tree
from privacy.ledger.verify_one import LedgerReport


def ledger_claims(folder: Path, pins: Path | None, parent_digest: str) -> tuple[LedgerClaim, ...]:
    """Verify every ledger below a folder and return what each node's says.

    Args:
        pins: keys obtained from their owners; None for `pins.json` beside the ledgers.
        parent_digest: `model_digest` of the model that variants are made of.

    Raises:
        LedgerError: no ledger, no node's among them, or one that does not hold.

    """
    reports = verify_tree(folder, load_pins(pins or folder / PINS_FILE))
    if broken := [report for report in reports if not report.is_ok]:
        raise LedgerError(
            f"Expected ledgers that hold, got {broken[0].directory}: {broken[0].failures[0]}. "
            "Nothing is claimed from a ledger that does not."
        )
    released = any(
        report.kind == "coordinator" and parent_digest in _released(report) for report in reports
    )
    claims = tuple(_claim(report, released) for report in reports if report.kind == "node")
    if not claims:
        raise LedgerError(
            f"Expected a node's ledger below {folder}, got none. Only nodes' ledgers hold what "
            "was charged."
        )
    return claims


def _claim(report: LedgerReport, names_parent: bool) -> LedgerClaim:
    return LedgerClaim(
        node=report.name,
        entries=report.entries,
        root=report.roots[report.entries],
        epsilon_micro=report.epsilon_micro,
        delta_1e15=report.delta_1e15,
        noise=report.noise,
        names_parent=names_parent,
    )


def _released(report: LedgerReport) -> set[str]:
    """Digests of the models that a coordinator's ledger says were handed out."""
    entries = map(parse_entry, read_lines(report.directory / ENTRIES_FILE).complete)
    bodies = (entry.parsed() for entry in entries)
    return {body.model_digest for body in bodies if isinstance(body, Release)}
