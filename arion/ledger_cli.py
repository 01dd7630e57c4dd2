"""`arion privacy ledger`: ledgers checked, shown and exported. Works offline."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from arion.errors import user_errors
from arion.options import Json
from privacy.canonical import JsonValue
from privacy.identity import fingerprint
from privacy.ledger.bundle import export_bundle, opened_bundle
from privacy.ledger.entries import DELTA_UNITS, LedgerError, parse_entry
from privacy.ledger.files import read_lines
from privacy.ledger.log import ENTRIES_FILE
from privacy.ledger.pins import PINS_FILE, Pins, load_pins
from privacy.ledger.spends import format_micro
from privacy.ledger.verify import LedgerReport, verify_tree

PIPED_WIDTH = 160
DIGEST_DIGITS = 64

ledger_app = typer.Typer(
    no_args_is_help=True, help="Budgets and rounds, as they were written down."
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder with ledgers, at any depth.")]
Place = Annotated[
    Path, typer.Argument(metavar="DIR|BUNDLE", help="Folder with ledgers, or an exported bundle.")
]


@ledger_app.command("verify")
def verify_command(
    place: Place,
    pins: Annotated[
        Path | None,
        typer.Option(
            "--pins",
            metavar="FILE",
            help="Keys obtained from their owners. Default: pins.json beside the ledgers.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every ledger of DIR or BUNDLE: signatures, history, budgets. Exit 0: all hold; 1: not.

    Example: arion privacy ledger verify runs/demo --pins keys-from-the-officers.json
    """
    with user_errors(), _folder_of(place) as directory:
        pins_path = pins or directory / PINS_FILE
        trusted = load_pins(pins_path)
        reports = verify_tree(directory, trusted)
        shown_here = pins_path.resolve().is_relative_to(directory.resolve())
    if as_json:
        typer.echo(json.dumps(_verdict_json(reports, trusted, shown_here), indent=2))
    else:
        _print_verdict(reports, trusted, pins or place / PINS_FILE, shown_here)
    raise typer.Exit(0 if all(report.is_ok for report in reports) else 1)


@ledger_app.command("export")
def export_command(
    directory: Folder,
    out: Annotated[Path, typer.Option(help="The bundle to write.")],
) -> None:
    """Write every ledger below DIR into one file that `verify` checks anywhere.

    It holds entries, signed heads, countersignatures and the pins in DIR: no key and no text.

    Example: arion privacy ledger export runs/demo --out demo-ledgers.zip
    """
    with user_errors():
        _check_folder(directory)
        names = export_bundle(directory, out)
    typer.echo(f"{len(names)} files in {out}")


@ledger_app.command("show")
def show_command(directory: Folder, as_json: Json = False) -> None:
    """Print the entries of every ledger below DIR, as written; nothing is verified.

    Example: arion privacy ledger show runs/demo/nodes/hospital-a
    """
    with user_errors():
        _check_folder(directory)
        ledgers = {
            str(path.parent.relative_to(directory)): _read_entries(path)
            for path in sorted(directory.rglob(ENTRIES_FILE))
        }
        if not ledgers:
            raise LedgerError(
                f"Expected a ledger ({ENTRIES_FILE}) below {directory}, got none. Give the folder "
                "of a node, of a coordinator or of a whole run."
            )
    if as_json:
        typer.echo(json.dumps(ledgers, indent=2))
        return
    for name, entries in ledgers.items():
        table = Table("entry", "kind", "content", title=escape(f"{name} (not verified)"), box=None)
        for entry in entries:
            content = escape(_shortened(entry["body"]))
            table.add_row(str(entry["index"]), str(entry["kind"]), content)
        _console().print(table)


@contextmanager
def _folder_of(place: Path) -> Iterator[Path]:
    if place.is_file():
        with opened_bundle(place) as folder:
            yield folder
        return
    _check_folder(place)
    yield place


def _check_folder(directory: Path) -> None:
    if not directory.is_dir():
        raise LedgerError(f"Expected a folder, got {directory}. Check the path.")


def _read_entries(path: Path) -> list[dict[str, JsonValue]]:
    entries = []
    for number, line in enumerate(read_lines(path).complete, start=1):
        try:
            entries.append(parse_entry(line).model_dump(mode="json"))
        except ValueError as error:
            raise LedgerError(f"{path} line {number} is damaged: {error}") from error
    return entries


def _shortened(body: JsonValue) -> str:
    """Write a body for people: digests by their beginning, a DP event by its name."""
    assert isinstance(body, dict), "every kind of entry has an object for a body"
    return "  ".join(f"{name}={_word(value)}" for name, value in body.items())


def _word(value: JsonValue) -> str:
    if isinstance(value, dict):
        return str(value.get("class_name", "{...}"))
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    text = "none" if value is None else str(value)
    return text[:12] if len(text) == DIGEST_DIGITS else text


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)


def _print_verdict(
    reports: list[LedgerReport], pins: Pins, pins_path: Path, shown_here: bool
) -> None:
    headings = ("ledger", "kind", "entries", "heads", "runs", "epsilon", "delta", "noise")
    table = Table(*headings, "verdict", box=None)
    for report in reports:
        table.add_row(*(escape(cell) for cell in _cells(report)))
    _console().print(table)
    for report in reports:
        for failure in report.failures:
            typer.echo(f"BAD  {report.name}: {failure}")
        for note in (*report.notes, *_plain_notes(report)):
            typer.echo(f"note {report.name}: {note}")
    _print_pins(pins, pins_path, shown_here)
    missing = sorted(set(pins) - {report.name for report in reports})
    if missing and len(reports) > 1:
        typer.echo(f"pinned, and no ledger of theirs is here: {', '.join(missing)}")
    bad = sum(not report.is_ok for report in reports)
    total = f"{len(reports)} ledger" + ("s" if len(reports) > 1 else "")
    typer.echo(f"{bad} of {total} do not hold." if bad else f"{total} checked: all hold.")


def _cells(report: LedgerReport) -> tuple[str, ...]:
    is_node = report.kind == "node"
    return (
        report.name,
        report.kind or "not pinned",
        str(report.entries),
        str(report.heads),
        str(report.run_count),
        format_micro(report.epsilon_micro) if is_node else "-",
        f"{report.delta_1e15 / DELTA_UNITS:.3g}" if is_node else "-",
        report.noise,
        "ok" if report.is_ok else "BAD",
    )


def _plain_notes(report: LedgerReport) -> Iterator[str]:
    if "seeded" in report.noise:
        yield "seeded, not private: the noise can be recomputed, so epsilon protects nobody"
    if any(run.kept_apart for run in report.runs):
        yield "runs on data sets that the node keeps apart do not add up: the largest sum counts"
    if report.epsilon_micro is None:
        yield "a run had no noise: no epsilon holds for its data"


def _print_pins(pins: Pins, pins_path: Path, shown_here: bool) -> None:
    typer.echo(f"Keys from {pins_path}:")
    for name, pin in sorted(pins.items()):
        typer.echo(f"  {name} ({pin.kind}) {fingerprint(pin.key)}")
    if shown_here:
        typer.echo(
            "These keys came with the ledgers, so this proves integrity only against the keys "
            "shown: whoever wrote the folder could have written both. Compare the fingerprints "
            "with their owners, or give keys obtained from them with --pins."
        )


def _verdict_json(reports: list[LedgerReport], pins: Pins, shown_here: bool) -> dict[str, Any]:
    return {
        "ok": all(report.is_ok for report in reports),
        "pins_from_same_folder": shown_here,
        "pins": {name: fingerprint(pin.key) for name, pin in sorted(pins.items())},
        "ledgers": [_report_json(report) for report in reports],
    }


def _report_json(report: LedgerReport) -> dict[str, Any]:
    return {
        "ledger": report.name,
        "kind": report.kind,
        "directory": str(report.directory),
        "entries": report.entries,
        "heads": report.heads,
        "countersignatures": report.countersignatures,
        "rounds": report.rounds,
        "signed_plans": report.signed_plans,
        "epsilon_micro": report.epsilon_micro,
        "delta_1e15": report.delta_1e15,
        "noise": report.noise,
        "runs": [vars(run) for run in report.runs],
        "modules": sorted(report.modules),
        "fingerprint": report.key_fingerprint,
        "ok": report.is_ok,
        "failures": list(report.failures),
        "notes": list(report.notes),
    }
