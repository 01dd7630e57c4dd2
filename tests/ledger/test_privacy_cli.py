"""`arion privacy` as its users see it: verdicts, exit codes, one-line errors."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from arion.privacy_cli import privacy_app
from privacy.consent import load_consent
from privacy.identity import fingerprint
from privacy.ledger.pins import Pins, load_pins, pins_bytes

WRITTEN_BY_ANYONE = "proves integrity only against the keys shown"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(privacy_app, [str(argument) for argument in arguments])


@pytest.fixture
def federation(tmp_path: Path, node_dir: Path, hub_dir: Path, pins: Pins) -> Path:
    (tmp_path / "pins.json").write_bytes(pins_bytes(pins))
    return tmp_path


def test_honest_ledgers_verify_against_the_keys_beside_them(federation: Path, pins: Pins) -> None:
    result = run("ledger", "verify", federation)
    assert result.exit_code == 0, result.output
    assert "2 ledgers checked: all hold." in result.output
    assert WRITTEN_BY_ANYONE in result.output
    for pin in pins.values():
        assert fingerprint(pin.key) in result.output


def test_a_ledger_that_is_not_there_is_named(federation: Path, pins: Pins) -> None:
    assert "no ledger of theirs" not in run("ledger", "verify", federation).output
    (federation / "pins.json").write_bytes(pins_bytes({**pins, "hospital-z": pins["hospital-a"]}))
    result = run("ledger", "verify", federation)
    assert "pinned, and no ledger of theirs is here: hospital-z" in result.output


def test_keys_from_elsewhere_need_no_warning(
    federation: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("officer") / "keys.json"
    (federation / "pins.json").rename(elsewhere)
    result = run("ledger", "verify", federation, "--pins", elsewhere)
    assert result.exit_code == 0, result.output
    assert WRITTEN_BY_ANYONE not in result.output


def test_a_damaged_ledger_exits_with_1_and_says_why(federation: Path) -> None:
    path = federation / "hospital-a" / "entries.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"notes"', b'"other"'))
    result = run("ledger", "verify", federation)
    assert result.exit_code == 1
    assert "BAD  hospital-a: head 1: its root is not that of the first 2" in result.output
    assert "1 of 2 ledgers do not hold." in result.output


def test_the_json_says_the_same(federation: Path) -> None:
    verdict = json.loads(run("ledger", "verify", federation, "--json").output)
    assert (verdict["ok"], verdict["pins_from_same_folder"]) == (True, True)
    node = next(report for report in verdict["ledgers"] if report["kind"] == "node")
    assert (node["ledger"], node["runs"][0]["debits"], node["noise"]) == ("hospital-a", 2, "csprng")


def test_show_prints_entries_without_claiming_them(federation: Path) -> None:
    result = run("ledger", "show", federation)
    assert result.exit_code == 0
    assert "hospital-a (not verified)" in result.output
    assert "plan_digest=000000000000  round=2  run=r1" in result.output
    entries = json.loads(run("ledger", "show", federation, "--json").output)
    assert [entry["index"] for entry in entries["hospital-a"]] == list(range(6))


CONSENT = f"""
federation = "clinics"
coordinator_key = "{"01" * 32}"
members = {{ hospital-a = "{"02" * 32}", hospital-b = "{"03" * 32}" }}
purposes = ["research"]
data_set = "notes"
unit = "patient"
accountant = "schedule"
epsilon = 8
delta = 1e-6
epsilon_per_run = 4
epsilon_if_all_others_collude = 8
smallest_cohort = 2
tolerated_colluders = 1
trainable = ["*.lora_a"]
runtimes = ["arion-grpc"]
expires = 2030-01-01
"""


def test_a_consent_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "consent.toml"
    path.write_text(CONSENT)
    result = run("consent", "explain", path)
    assert result.exit_code == 0, result.output
    assert "takes part in the federation 'clinics' of 2 members" in result.output
    assert load_consent(path).digest() in result.output


def test_a_bad_consent_is_refused_by_its_clause(tmp_path: Path) -> None:
    path = tmp_path / "consent.toml"
    path.write_text(CONSENT.replace("delta = 1e-6", "delta = 1"))
    result = run("consent", "explain", path)
    assert result.exit_code == 2
    assert "error: Consent clause 'delta': Input should be less than 0.001" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("ledger", "verify", "absent"), "Expected a folder, got absent"),
        (("ledger", "show", "absent"), "Expected a folder, got absent"),
        (("ledger", "show", "."), "below ., got none"),
        (("consent", "explain", "absent.toml"), "Expected a readable absent.toml"),
        (("ledger", "verify", "."), "Expected pinned keys in pins.json"),
    ],
)
def test_errors_are_one_line_without_a_trace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("content", ['{"a":{"public_key":"zz","kind":"node"}}', "[]", "{"])
def test_bad_pins_are_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "pins.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"Expected \{name: \{public_key, kind\}\}"):
        load_pins(path)


@pytest.mark.parametrize("command", ["ledger verify", "ledger show", "consent explain"])
def test_help_gives_an_example(command: str) -> None:
    assert f"Example: arion privacy {command}" in run(*command.split(), "--help").output
