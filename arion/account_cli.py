"""`arion privacy budget`: what each data set's units were charged, and what is left."""

import json
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from arion.errors import user_errors
from arion.options import Json
from client.config import CONSENT_FILE, LEDGER_FOLDER
from privacy.budget_clauses import filter_budget, run_delta
from privacy.consent import Consent, load_consent
from privacy.figures import at_least, at_most
from privacy.ledger.budget import check_node_entries
from privacy.ledger.entries import DELTA_UNITS, EPSILON_UNITS, LedgerError, parse_entry
from privacy.ledger.files import read_lines
from privacy.ledger.filter import FilterState
from privacy.ledger.log import ENTRIES_FILE
from privacy.ledger.spends import RunSpend, compose_spends, format_micro


@dataclass(frozen=True)
class _Account:
    """What the life of one data set's units has been charged at one node."""

    node: str
    consent: Consent
    runs: tuple[RunSpend, ...]
    filter: FilterState | None = None

    def as_json(self) -> dict[str, Any]:
        told = {
            "node": self.node,
            "data_set": self.consent.data_set,
            "unit": self.consent.unit,
            "accountant": self.consent.accountant,
            "epsilon": self.consent.epsilon,
            "delta": self.consent.delta,
            "expired": self.consent.expires < date.today(),
        }
        left = self._left() if self.filter is None else self._left_by_filter(self.filter)
        return {**told, **left, "runs": [asdict(run) for run in self.runs]}

    def _left_by_filter(self, state: FilterState) -> dict[str, Any]:
        """No epsilon "so far": a filter bounds the end, and promises no figure on the way."""
        return {
            "spent_share": state.spent_share,
            "left_share": max(0.0, 1 - state.spent_share),
            "releases_left": state.life_releases_left,
        }

    def _left(self) -> dict[str, Any]:
        """In whole units, as a node counts; each run takes the same share of delta."""
        consent = self.consent
        own = consent.data_set if consent.keep_data_sets_apart else None
        epsilon, delta = compose_spends(self.runs, own)
        left = 0 if epsilon is None else max(0, round(consent.epsilon * EPSILON_UNITS) - epsilon)
        left_delta = max(0, round(consent.delta * DELTA_UNITS) - delta)
        runs_by_delta = left_delta // max(1, round(run_delta(consent) * DELTA_UNITS))
        full = max(1, round(consent.epsilon_per_run * EPSILON_UNITS))
        return {
            "spent_epsilon": None if epsilon is None else epsilon / EPSILON_UNITS,
            "spent_delta": delta / DELTA_UNITS,
            "left_epsilon": left / EPSILON_UNITS,
            "left_delta": left_delta / DELTA_UNITS,
            "next_run_at_most": min(left, full) / EPSILON_UNITS if runs_by_delta else 0.0,
            "full_runs_left": min(left // full, runs_by_delta),
        }


def budget_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Node homes, at any depth.")],
    as_json: Json = False,
) -> None:
    """Show what each data set's units were charged, what is left, and what a next run may cost.

    Reads the books of every node below DIR; `arion privacy ledger verify` checks them.

    Example: arion privacy budget runs/demo/nodes/hospital-a
    """
    with user_errors():
        accounts = [_account(path.parent) for path in sorted(directory.rglob(CONSENT_FILE))]
        if not accounts:
            raise LedgerError(
                f"Expected a node's home with {CONSENT_FILE} below {directory}, got none. Check "
                "the path."
            )
    if as_json:
        typer.echo(json.dumps([account.as_json() for account in accounts], indent=1))
        return
    for account in accounts:
        _print_account(account)


def _account(home: Path) -> _Account:
    consent = load_consent(home / CONSENT_FILE)
    ledger = home / LEDGER_FOLDER
    if not (ledger / ENTRIES_FILE).is_file():
        return _Account(home.name, consent, (), _unspent_filter(consent))
    # Read only, so that a node may go on writing.
    entries = [parse_entry(line) for line in read_lines(ledger / ENTRIES_FILE).complete]
    findings = check_node_entries(entries)
    if findings.failures:
        raise LedgerError(
            f"Expected books that add up in {ledger}, got: {findings.failures[0]}. Run "
            "`arion privacy ledger verify` on them."
        )
    if others := sorted({run.unit for run in findings.runs} - {consent.unit}):
        raise LedgerError(
            f"Expected books in {ledger} by the unit of {CONSENT_FILE}, {consent.unit!r}, got runs "
            f"charged for {', '.join(map(repr, others))}. The node takes part in nothing until "
            "they agree."
        )
    state = findings.filter or _unspent_filter(consent)
    is_other = consent.accountant != "filter" or (findings.filter is None and findings.runs)
    if state is not None and (is_other or state.opened != filter_budget(consent)):
        raise LedgerError(
            f"Expected books in {ledger} by the accountant and the budget of {CONSENT_FILE}, got "
            "another one there. The node releases nothing until they agree."
        )
    return _Account(home.name, consent, tuple(findings.runs), state)


def _unspent_filter(consent: Consent) -> FilterState | None:
    return FilterState(filter_budget(consent)) if consent.accountant == "filter" else None


def _print_account(account: _Account) -> None:
    told = account.as_json()
    title = f"{account.node}: {told['data_set']}, unit {told['unit']}"
    headings = ("run", "data set", "releases", "made", "epsilon", "delta")
    table = Table(*headings, title=title, box=None)
    for run in account.runs:
        table.add_row(
            run.run,
            run.data_set + (", kept apart" if run.kept_apart else ""),
            str(run.releases),
            str(run.debits),
            format_micro(run.epsilon_micro),
            f"{run.delta_1e15 / DELTA_UNITS:.3g}",
        )
    Console().print(table)
    if account.filter is not None:
        _print_filter(told)
    else:
        _print_schedule(told)
    if told["expired"]:
        typer.echo(f"no further run fits: the consent ended on {account.consent.expires}")


def _print_schedule(told: dict[str, Any]) -> None:
    spent = told["spent_epsilon"]
    figure = "unbounded" if spent is None else at_most(spent)
    left = at_least(told["left_epsilon"])
    typer.echo(
        f"spent epsilon {figure} of {told['epsilon']:g}, "
        f"delta {told['spent_delta']:.3g} of {told['delta']:g}; left {left}"
    )
    if told["expired"]:
        return
    if told["left_epsilon"] and not told["next_run_at_most"]:
        typer.echo("no further run fits: too little is left of delta, of which each takes a share")
        return
    typer.echo(
        f"a next run may cost at most {at_least(told['next_run_at_most'])}; "
        f"{told['full_runs_left']} runs at the full cap fit"
    )


def _print_filter(told: dict[str, Any]) -> None:
    typer.echo(
        f"a filter on epsilon {told['epsilon']:g} and delta {told['delta']:g}: spent "
        f"{at_most(100 * told['spent_share'])} %, left {at_least(100 * told['left_share'])} %"
    )
    left = told["releases_left"]
    if left is not None and not told["expired"]:
        typer.echo(f"{left} more releases like the last one fit in the data's life")
