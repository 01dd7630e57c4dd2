"""Auditors: who may see the ledgers, what they get, and what they notice."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import privacy.ledger.bundle
from arion.cli import app
from client.ledgers import WITNESS_FILE
from client.membership import dialled
from client.transport import LinkRefused
from coordinator.service.home import ServiceHome
from privacy.canonical import canonical_bytes
from privacy.identity import IdentityKey, Signed, fingerprint
from privacy.ledger.bundle import bundle, opened_bundle
from privacy.ledger.entries import RoundRecorded, RunOpened
from privacy.ledger.log import LedgerLog
from privacy.ledger.pins import PINS_FILE, Pin, load_pins
from privacy.ledger.plans import PLANS_FILE, plan_lines
from privacy.ledger.verify import LedgerReport, verify_ledger
from protos.arion.v1 import service_pb2_grpc as rpc
from tests.service.institutions import EXACT, Institutions
from tests.service.members import refused
from tests.service.running import RunningService
from tests.service.test_operations import joined_as


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["auditor", *map(str, arguments)])


def write(home: ServiceHome, *runs: str) -> None:
    """Entries of the coordinator's, under a signed head."""
    with LedgerLog(home.path / "ledger", "coordinator") as log:
        for run in runs:
            cohort = ("a", "b", "c")
            opened = RunOpened(run=run, federation="f", cohort=cohort, model_digest="0" * 64)
            log.append("run-opened", opened)
        log.sign_head(home.key)


@pytest.fixture
def auditor(service: RunningService, tmp_path: Path) -> Path:
    """A home that has joined and pinned the coordinator."""
    home = tmp_path / "auditor"
    joined_as(service, home, "inspector", "auditor")
    read_out = fingerprint(service.home.key.public_key)
    result = command("pin", "coordinator", read_out, "--home", home)
    assert result.exit_code == 0, result.stderr
    return home


@pytest.fixture
def pull(auditor: Path, tmp_path: Path) -> Callable[[], dict[str, object]]:
    def act() -> dict[str, object]:
        result = command("pull", auditor, "--out", tmp_path / "out.zip", "--json")
        said: dict[str, object] = json.loads(result.stdout)
        assert result.exit_code == (0 if said["ok"] else 1)
        return said

    return act


def test_an_auditor_checks_a_run_offline(
    institutions: Callable[..., Institutions], auditor: Path, pull: Callable[[], dict[str, object]],
    tmp_path: Path,
) -> None:  # fmt: skip
    there = institutions(EXACT, rounds=1)
    names = sorted(there.federation.homes.nodes)
    there.start(*names)
    there.run()
    for name in names:
        key = IdentityKey.load(there.federation.homes.nodes[name] / "identity.key").public_key
        assert command("pin", name, fingerprint(key), "--home", auditor).exit_code == 0
    found = pull()
    assert (found["ok"], found["runs"], found["rounds"]) == (True, 1, 1)
    assert found["new_entries"] == found["entries"]
    assert found["countersignatures"] >= len(names)
    assert (found["notes"], found["signed_plans"]) == ([], 1)
    assert pull()["new_entries"] == 0
    there.stop()
    verify = ["privacy", "ledger", "verify", str(tmp_path / "out.zip"), "--pins"]
    assert CliRunner().invoke(app, [*verify, str(auditor / PINS_FILE)]).exit_code == 0
    with zipfile.ZipFile(tmp_path / "out.zip") as made:
        kinds = {name.rpartition("/")[2].partition(".")[2] for name in made.namelist()}
    assert kinds <= {"jsonl", "witness.json", "json"}, "and no key"


@pytest.mark.parametrize(("role", "may"), [("auditor", True), ("operator", True), ("node", False)])
def test_who_may_see_ledgers(
    service: RunningService, tmp_path: Path, role: str, *, may: bool
) -> None:
    write(service.home, "first")
    joined_as(service, tmp_path / "member", "member", role)
    with dialled(tmp_path / "member") as link:
        if may:
            assert b"".join(link.ledgers())
        else:
            refused("wrong-role", lambda: b"".join(link.ledgers()))


def test_a_revoked_auditor_sees_nothing_more(service: RunningService, auditor: Path) -> None:
    write(service.home, "first")
    with dialled(auditor) as link:
        assert b"".join(link.ledgers())
        service.home.registry.revoke("inspector")
        refused("revoked", lambda: b"".join(link.ledgers()))


def test_without_a_ledger_no_path_is_told(service: RunningService, auditor: Path) -> None:
    with dialled(auditor) as link:
        with pytest.raises(LinkRefused, match="no run has begun") as refusal:
            b"".join(link.ledgers())
        assert refusal.value.code == "no-ledger"
        assert str(service.home.path) not in str(refusal.value)


def test_nothing_is_fetched_before_the_coordinator_is_pinned(
    service: RunningService, auditor: Path, tmp_path: Path
) -> None:
    write(service.home, "first")
    (auditor / PINS_FILE).unlink()
    result = command("pull", auditor, "--out", tmp_path / "out.zip")
    assert (result.exit_code, "pin coordinator FINGERPRINT" in result.stderr) == (2, True)
    assert not (tmp_path / "out.zip").exists()


def test_another_fingerprint_is_not_pinned(service: RunningService, auditor: Path) -> None:
    before = (auditor / PINS_FILE).read_bytes()
    other = fingerprint(IdentityKey.generate().public_key)
    result = command("pin", "coordinator", other, "--home", auditor)
    assert (result.exit_code, "pin nothing" in result.stderr) == (2, True)
    result = command("pin", "nobody", other, "--home", auditor)
    assert (result.exit_code, "Expected an approved member" in result.stderr) == (2, True)
    assert (auditor / PINS_FILE).read_bytes() == before
    (auditor / PINS_FILE).unlink()
    right = fingerprint(service.home.key.public_key)
    result = command("pin", "coordinator", right, "coordinator", other, "--home", auditor)
    assert (result.exit_code, "pin nothing" in result.stderr) == (2, True)
    assert not (auditor / PINS_FILE).exists()


def test_members_says_what_an_auditor_pinned(auditor: Path) -> None:
    shown = CliRunner().invoke(app, ["node", "members", str(auditor), "--json"])
    pins = load_pins(auditor / PINS_FILE)
    words = {row["name"]: row["pin"] for row in json.loads(shown.stdout)}
    assert words["coordinator"] == "pinned"
    assert {name for name, word in words.items() if word == "pinned"} == set(pins)


def test_a_pinned_key_is_not_replaced(service: RunningService, auditor: Path) -> None:
    pins = load_pins(auditor / PINS_FILE)
    other = Pin(public_key="ab" * 32, kind="coordinator").model_dump()
    (auditor / PINS_FILE).write_text(json.dumps({**pins, "coordinator": other}))
    read_out = fingerprint(service.home.key.public_key)
    result = command("pin", "coordinator", read_out, "--home", auditor)
    assert (result.exit_code, "begin a new home" in result.stderr) == (2, True)


def test_a_rollback_and_a_fork_are_noticed(
    service: RunningService, auditor: Path, pull: Callable[[], dict[str, object]], tmp_path: Path
) -> None:
    ledger, older = service.home.path / "ledger", tmp_path / "older"
    write(service.home, "first")
    shutil.copytree(ledger, older)
    write(service.home, "second")
    assert pull()["entries"] == 2
    held = (auditor / WITNESS_FILE).read_bytes()
    shutil.rmtree(ledger)
    shutil.copytree(older, ledger)  # as from a backup
    (failure,) = pull()["failures"]
    assert "rolled back: 2 entries were shown before, and 1 are there" in failure
    write(service.home, "another", "third")  # signed by the coordinator's own key
    (failure,) = pull()["failures"]
    assert "forked: another history of 2 entries was shown before" in failure
    assert (tmp_path / "out.zip").exists(), "the evidence"
    assert (auditor / WITNESS_FILE).read_bytes() == held


def test_an_altered_entry_is_noticed(
    service: RunningService, auditor: Path, pull: Callable[[], dict[str, object]]
) -> None:
    write(service.home, "first")
    path = service.home.path / "ledger" / "entries.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"first"', b'"other"'))
    found = pull()
    assert not found["ok"]
    assert not (auditor / WITNESS_FILE).exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"dp_event": "another"}, "entry 1 says another dp_event than its plan"),
        ({"round": 2}, "entry 1 says another round than its plan"),
        ({"run": "other"}, "entry 1 says another run than its plan"),
        ({"signer": "another"}, "plans.jsonl line 1 is no plan signed by the pinned key"),
    ],
)
def test_a_plan_is_held_against_its_entry(
    service_home: ServiceHome, tmp_path: Path, changes: dict[str, object], says: str | None
) -> None:
    key = service_home.key if "signer" not in changes else IdentityKey.generate()
    said = {"run": "first", "round": 1, "attempt": 1, "dp_event": "gaussian"}
    said |= {name: value for name, value in changes.items() if name != "signer"}
    plan = key.sign("plan", canonical_bytes(said))
    report = verify_with_plans(service_home, tmp_path, plan, [plan])
    assert report.failures == ((says,) if says else ())
    assert report.signed_plans == ("signer" not in changes)


def test_a_plan_that_is_missing_is_noted(service_home: ServiceHome, tmp_path: Path) -> None:
    sign = service_home.key.sign
    plans = [sign("plan", canonical_bytes({"round": number})) for number in (1, 2)]
    report = verify_with_plans(service_home, tmp_path, plans[0], plans[1:])
    assert report.is_ok
    assert report.notes == ("the plan of entry 1 is not there",)


def test_what_is_signed_need_not_be_a_plan(service_home: ServiceHome, tmp_path: Path) -> None:
    other = service_home.key.sign("plan", b"[1]")
    report = verify_with_plans(service_home, tmp_path, other, [other])
    assert report.failures == ("plans.jsonl line 1 is no plan signed by the pinned key",)


def verify_with_plans(
    home: ServiceHome, folder: Path, named: Signed, shown: list[Signed]
) -> LedgerReport:
    """A ledger whose one round names a plan, beside the plans that are shown."""
    body = RoundRecorded(
        run="first",
        round=1,
        attempt=1,
        plan_digest=hashlib.sha256(named.payload).hexdigest(),
        survivors=("a", "b", "c"),
        model_digest_before="0" * 64,
        model_digest_after="1" * 64,
        event="gaussian",
        outcome="applied",
    )
    opened = RunOpened(run="first", federation="f", cohort=("a", "b", "c"), model_digest="0" * 64)
    with LedgerLog(folder / "ledger", "coordinator") as log:
        log.append("run-opened", opened)
        log.append("round-recorded", body)
        log.sign_head(home.key)
    (folder / "ledger" / PLANS_FILE).write_bytes(plan_lines(shown))
    pin = Pin(public_key=home.key.public_key.hex(), kind="coordinator")
    return verify_ledger(folder / "ledger", {"coordinator": pin})


def test_a_ledger_that_grows_meanwhile_is_whole(
    service_home: ServiceHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that is signed between two reads has its entries in the bundle."""
    write(service_home, "first")
    read, runs = privacy.ledger.bundle.read_lines, iter(["second", "third", "fourth"])

    def growing(path: Path) -> object:
        found = read(path)
        write(service_home, next(runs))
        return found

    monkeypatch.setattr(privacy.ledger.bundle, "read_lines", growing)
    (tmp_path / "out.zip").write_bytes(bundle(service_home.path, ("ledger",))[0])
    key = service_home.key.public_key.hex()
    with opened_bundle(tmp_path / "out.zip") as folder:
        pins = {"coordinator": Pin(public_key=key, kind="coordinator")}
        report = verify_ledger(folder / "ledger", pins)
    assert report.is_ok, report.failures
    assert report.entries == 3


@pytest.fixture
def older_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "add_AuditServicer_to_server", lambda servicer, server: None)


@pytest.mark.usefixtures("older_coordinator", "service")
def test_an_older_coordinator_is_named(auditor: Path, tmp_path: Path) -> None:
    result = command("pull", auditor, "--out", tmp_path / "out.zip")
    assert (result.exit_code, "Have the operator upgrade it" in result.stderr) == (2, True)
