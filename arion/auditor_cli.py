"""`arion auditor`: what an auditor of a federation pins, fetches and checks."""

import json
from pathlib import Path
from typing import Annotated

import typer

from arion.errors import user_errors
from arion.node_consent_cli import Pairs, fingerprints_read_out, relayed_keys
from arion.options import Json
from client.ledgers import Pulled, pin_key, pull_ledgers
from client.membership import dialled
from privacy.consent_pins import check_read_out
from privacy.ledger.pins import PINS_FILE

auditor_app = typer.Typer(
    no_args_is_help=True,
    help="Auditors, who join as nodes do (arion node join) and see what was written down.",
)

AuditorHome = Annotated[Path, typer.Option(help="The auditor's home.")]


@auditor_app.command("pin")
def pin_command(
    pairs: Pairs,
    *,
    home: AuditorHome,
) -> None:
    """Pin keys to check ledgers by, if the fingerprints are those that the coordinator relays.

    Example: arion auditor pin coordinator arion:01234567-… --home auditor
    """
    with user_errors():
        relayed = relayed_keys(home)
        read = fingerprints_read_out(pairs, relayed)
        for name, read_out in read:  # all before one is pinned
            check_read_out(name, read_out, relayed[name])
        for name, _ in read:
            pin_key(home, name, relayed[name])
            typer.echo(f"{name} is pinned in {home / PINS_FILE}")


@auditor_app.command("pull")
def pull_command(
    home: Annotated[Path, typer.Argument(metavar="HOME", help="The auditor's home.")],
    *,
    out: Annotated[Path, typer.Option(help="The bundle to write, or to replace.")],
    as_json: Json = False,
) -> None:
    """Fetch the coordinator's ledger and check it. Exit code 0: it holds; 1: it does not.

    It is checked by the keys pinned here, and must begin with what was fetched the last time. The
    bundle can be checked again anywhere: arion privacy ledger verify OUT --pins HOME/pins.json

    Example: arion auditor pull auditor --out ledgers.zip
    """
    with user_errors(), dialled(home) as link:
        pulled = pull_ledgers(home, link, out)
    if as_json:
        typer.echo(json.dumps(_json(pulled), indent=2))
    else:
        _print(pulled, out)
    raise typer.Exit(0 if pulled.report.is_ok else 1)


def _print(pulled: Pulled, out: Path) -> None:
    report = pulled.report
    for failure in report.failures:
        typer.echo(f"BAD  {failure}")
    for note in report.notes:
        typer.echo(f"note {note}")
    typer.echo(
        f"{report.entries} entries, {pulled.new_entries} of them new; {report.run_count} runs, "
        f"{report.rounds} rounds, {report.heads} heads, {report.countersignatures} "
        f"countersignatures, {report.signed_plans} signed plans, in {out}"
    )
    typer.echo("It holds." if report.is_ok else f"It does NOT hold: keep {out} as evidence.")


def _json(pulled: Pulled) -> dict[str, object]:
    report = pulled.report
    return {
        "ok": report.is_ok,
        "entries": report.entries,
        "new_entries": pulled.new_entries,
        "runs": report.run_count,
        "rounds": report.rounds,
        "heads": report.heads,
        "countersignatures": report.countersignatures,
        "signed_plans": report.signed_plans,
        "fingerprint": report.key_fingerprint,
        "failures": list(report.failures),
        "notes": list(report.notes),
    }
