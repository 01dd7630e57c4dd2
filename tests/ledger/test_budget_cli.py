"""`arion privacy budget`: what a ledger says was spent, beside what the consent allows."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from arion.privacy_cli import privacy_app
from privacy.dp.rdp_filter import charge_of, open_filter
from privacy.ledger.pins import Pins
from privacy.ledger.verify import verify_tree

CONSENT = """
federation = "clinics"
coordinator_key = "{hub}"
members = {{ hospital-a = "{a}", hospital-b = "{b}" }}
purposes = ["answering questions"]
data_set = "notes"
unit = "patient"
accountant = "schedule"
epsilon = 8.0
delta = 1e-4
epsilon_per_run = 3.0
epsilon_if_all_others_collude = 100.0
smallest_cohort = 2
tolerated_colluders = 1
trainable = ["*"]
runtimes = ["simulate"]
expires = "2030-12-31"
""".format(hub="01" * 32, a="02" * 32, b="03" * 32)


@pytest.fixture
def home(tmp_path: Path, node_dir: Path) -> Path:
    home = tmp_path / "nodes" / "hospital-a"
    home.mkdir(parents=True)
    node_dir.rename(home / "ledger")
    (home / "consent.toml").write_text(CONSENT)
    return home


def budget(*arguments: str | Path) -> Result:
    return CliRunner().invoke(privacy_app, ["budget", *(str(a) for a in arguments)])


def test_the_account_is_what_the_ledger_verifies_to(home: Path, pins: Pins) -> None:
    result = budget(home, "--json")
    assert result.exit_code == 0, result.output
    (account,) = json.loads(result.output)
    (report,) = verify_tree(home, pins)
    spent = report.epsilon_micro / 1e6
    assert account["spent_epsilon"] == pytest.approx(spent)
    assert account["left_epsilon"] == pytest.approx(8.0 - spent)
    assert account["spent_delta"] == pytest.approx(1e-5)
    assert account["next_run_at_most"] == pytest.approx(min(3.0, 8.0 - spent))
    assert account["full_runs_left"] == int((8.0 - spent) / 3.0)
    assert (account["data_set"], account["unit"]) == ("notes", "patient")


def test_a_delta_that_is_used_up_leaves_no_run(tmp_path: Path, make: Any) -> None:
    """Runs of little epsilon take their share of delta all the same."""
    home = tmp_path / "nodes" / "hospital-a"
    home.mkdir(parents=True)
    share = int(1e-4 * 3 / 8 * 1e15)
    cheap = [make.reserved(f"r{run}", delta_1e15=share) for run in range(2)]
    make.write(home / "ledger", "hospital-a", make.NODE_KEY, [make.joined(), *cheap])
    (home / "consent.toml").write_text(CONSENT)
    (account,) = json.loads(budget(home, "--json").stdout)
    assert account["left_epsilon"] > 3
    assert (account["next_run_at_most"], account["full_runs_left"]) == (0.0, 0)
    assert "too little is left of delta" in budget(home).output


@pytest.mark.parametrize("accountant", ["home", "filtered"])
def test_under_a_consent_that_ended_no_run_fits(
    request: pytest.FixtureRequest, accountant: str
) -> None:
    place = request.getfixturevalue(accountant)
    assert not json.loads(budget(place, "--json").output)[0]["expired"]
    path = place / "consent.toml"
    path.write_text(path.read_text().replace("2030-12-31", "2020-01-01"))
    (account,) = json.loads(budget(place, "--json").output)
    assert account["expired"]
    out = budget(place).output
    assert "no further run fits: the consent ended on 2020-01-01" in out
    assert "fit in the data's life" not in out
    assert "a next run may cost" not in out


def test_books_of_another_unit_are_one_line(home: Path) -> None:
    path = home / "consent.toml"
    path.write_text(path.read_text().replace('unit = "patient"', 'unit = "ward"'))
    result = budget(home)
    assert result.exit_code == 2
    assert "'ward', got runs charged for 'patient'" in result.output


def test_people_read_the_same(home: Path) -> None:
    out = budget(home.parent).output
    assert "hospital-a: notes, unit patient" in out
    assert "runs at the full cap fit" in out


def test_runs_on_data_sets_kept_apart_are_not_charged_to_this_one(
    tmp_path: Path, make: Any
) -> None:
    """Two runs on other data, one on the consent's: only a consent that asks for it tells apart."""
    home = tmp_path / "nodes" / "hospital-a"
    home.mkdir(parents=True)
    names = ("other", "notes", "other")
    runs = [
        make.reserved(f"r{number}", data_set=name, kept_apart=True)
        for number, name in enumerate(names)
    ]
    make.write(home / "ledger", "hospital-a", make.NODE_KEY, [make.joined(), *runs])
    each = runs[0][1]["epsilon_micro"] / 1e6
    for clause, expected in (("true", each), ("false", 2 * each)):
        (home / "consent.toml").write_text(f"{CONSENT}\nkeep_data_sets_apart = {clause}\n")
        (account,) = json.loads(budget(home, "--json").output)
        assert account["spent_epsilon"] == pytest.approx(expected)
        assert account["left_epsilon"] == pytest.approx(8.0 - expected)
    assert "other, kept apart" in budget(home).output


def test_a_node_that_released_nothing_has_all_of_it(home: Path) -> None:
    (home / "ledger").rename(home / "elsewhere")
    (account,) = json.loads(budget(home, "--json").output)
    assert (account["spent_epsilon"], account["left_epsilon"]) == (0.0, 8.0)


def test_no_home_is_one_line(tmp_path: Path) -> None:
    result = budget(tmp_path)
    assert result.exit_code == 2
    assert "consent.toml" in result.output


@pytest.fixture
def filtered(tmp_path: Path, make: Any) -> Path:
    """A home whose filter was charged two releases."""
    home = tmp_path / "nodes" / "hospital-a"
    home.mkdir(parents=True)
    limits = {"epsilon_per_run_micro": 3_000_000, "run_delta_1e15": 37_500_000_000}
    entries = [make.joined(), make.filter_opened(**limits), make.charged(1), make.charged(2)]
    make.write(home / "ledger", "hospital-a", make.NODE_KEY, entries)
    (home / "consent.toml").write_text(CONSENT.replace('"schedule"', '"filter"'))
    return home


def test_a_filter_says_what_was_spent_and_what_fits(filtered: Path, make: Any) -> None:
    (account,) = json.loads(budget(filtered, "--json").output)
    limits = open_filter(8.0, 1e-4)
    each = charge_of(make.STEP.event(), vector_length=900, contributors=3)
    assert account["releases_left"] == limits.releases_left(each.times(2), each)
    longest = min(2 * a / b for a, b in zip(each.rdp, limits.limits, strict=True) if b > 0)
    assert account["spent_share"] == max(longest, 2 * each.slack / limits.slack)
    assert account["left_share"] == 1 - account["spent_share"]
    assert "spent_epsilon" not in account
    out = budget(filtered).output
    assert "a filter on epsilon 8 and delta 0.0001: spent" in out
    assert f"{account['releases_left']} more releases like the last one fit" in out


def test_a_filter_without_releases_has_all_of_it(filtered: Path) -> None:
    (filtered / "ledger").rename(filtered / "elsewhere")
    (account,) = json.loads(budget(filtered, "--json").output)
    assert (account["spent_share"], account["releases_left"]) == (0.0, None)


@pytest.mark.parametrize("change", [('"filter"', '"schedule"'), ("epsilon = 8.0", "epsilon = 9.0")])
def test_books_of_another_budget_are_one_line(filtered: Path, change: tuple[str, str]) -> None:
    path = filtered / "consent.toml"
    path.write_text(path.read_text().replace(*change))
    result = budget(filtered)
    assert result.exit_code == 2
    assert "by the accountant and the budget of consent.toml" in result.output


def test_schedules_under_a_consent_for_a_filter_are_one_line(home: Path) -> None:
    path = home / "consent.toml"
    path.write_text(path.read_text().replace('"schedule"', '"filter"'))
    result = budget(home)
    assert result.exit_code == 2
    assert "by the accountant and the budget of consent.toml" in result.output
