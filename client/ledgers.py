"""The coordinator's ledger at an auditor's: fetched, checked by pinned keys, held against the last.

Nothing that the coordinator sends is believed. What it sent is kept also where it does not hold: it
is the evidence.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from client.config import NodeError
from client.transport import Link, LinkRefused
from privacy.consent_pins import COORDINATOR
from privacy.ledger.bundle import LARGEST_BUNDLE_BYTES, opened_bundle
from privacy.ledger.files import read_lines, replace_durably
from privacy.ledger.head import TreeHead, parse_signed_line, parse_statement
from privacy.ledger.log import HEADS_FILE
from privacy.ledger.pins import PINS_FILE, Pin, Pins, load_pins, pins_bytes
from privacy.ledger.verify import WITNESS_SUFFIX, LedgerReport, verify_tree

WITNESS_FILE = f"{COORDINATOR}{WITNESS_SUFFIX}"


@dataclass(frozen=True)
class Pulled:
    """What was fetched.

    Attributes:
        report: on the coordinator's ledger.
        new_entries: since the last time that it held; all of them at first.

    """

    report: LedgerReport
    new_entries: int


def pull_ledgers(home: Path, link: Link, out: Path) -> Pulled:
    """Fetch the coordinator's ledger, check it, and remember its newest head where it holds.

    1. The coordinator's key is pinned here. 2. The bundle is kept as it came. 3. It holds, as
    `verify_tree` says. 4. Its history begins with the head that was remembered last. 5. Its newest
    head is remembered, on the disk before we return.

    Args:
        home: the auditor's.
        link: to the coordinator.
        out: the bundle; replaced as a whole.

    Raises:
        NodeError: nothing is pinned, or the bundle holds no ledger of the coordinator's.
        LedgerError: no bundle.
        LinkLost, LinkRefused: the coordinator cannot be reached, or refuses.

    """
    pins = auditor_pins(home)
    if COORDINATOR not in pins:  # 1
        raise NodeError(
            "Expected a pinned key of the coordinator, got none. Have its operator read the "
            f"fingerprint out, then: arion auditor pin {COORDINATOR} FINGERPRINT --home {home}"
        )
    replace_durably(out, b"".join(_fetched(link)))  # 2
    with opened_bundle(out) as folder:
        report = _own_report(verify_tree(folder, pins))  # 3
        held = _held(home)
        report = replace(report, failures=(*report.failures, *_contradictions(report, held)))  # 4
        if report.is_ok:
            newest = read_lines(report.directory / HEADS_FILE).complete[-1]
            replace_durably(home / WITNESS_FILE, newest + b"\n")  # 5
    return Pulled(report, report.entries - (held.size if held else 0))


def auditor_pins(home: Path) -> Pins:
    """The keys that an auditor pinned so far."""
    path = home / PINS_FILE
    return load_pins(path) if path.exists() else {}


def pin_key(home: Path, name: str, key: bytes) -> None:
    """Pin a key whose fingerprint was compared; NodeError where another one is pinned."""
    pins = auditor_pins(home)
    new = Pin(public_key=key.hex(), kind="coordinator" if name == COORDINATOR else "node")
    if pins.get(name, new) != new:
        raise NodeError(
            f"Expected {name!r} not to be pinned yet, or by this key, got another one. If its "
            f"owner has a new key, keep this {PINS_FILE} and begin a new home."
        )
    replace_durably(home / PINS_FILE, pins_bytes({**pins, name: new}))


def _fetched(link: Link) -> Iterator[bytes]:
    size = 0
    try:
        for chunk in link.ledgers():
            size += len(chunk)
            if size > LARGEST_BUNDLE_BYTES:
                raise LinkRefused(
                    "too-large", f"Expected {LARGEST_BUNDLE_BYTES} bytes at most, got more."
                )
            yield chunk
    except LinkRefused as refusal:
        if refusal.code != "unknown-call":
            raise
        raise LinkRefused(
            refusal.code,
            "Expected a coordinator that shows its ledger, got an older one. Have the operator "
            "upgrade it.",
        ) from refusal


def _own_report(reports: list[LedgerReport]) -> LedgerReport:
    """The report on the one ledger that a coordinator may show."""
    if len(reports) != 1:
        raise NodeError(f"Expected the coordinator's ledger alone, got {len(reports)} ledgers.")
    return reports[0]


def _held(home: Path) -> TreeHead | None:
    path = home / WITNESS_FILE
    if not path.exists():
        return None
    signed = parse_signed_line(path.read_bytes().removesuffix(b"\n"))
    return parse_statement(signed.payload, TreeHead)


def _contradictions(report: LedgerReport, held: TreeHead | None) -> Iterator[str]:
    if report.kind != COORDINATOR:
        yield f"Expected the ledger of {COORDINATOR!r}, got that of {report.name!r}"
    if held is None:
        return
    if held.size > report.entries:
        yield (
            f"rolled back: {held.size} entries were shown before, and {report.entries} are there"
        )
    elif held.root != report.roots[held.size]:
        yield f"forked: another history of {held.size} entries was shown before"
