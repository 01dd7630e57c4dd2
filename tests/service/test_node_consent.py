"""An institution's side before its first run: a draft, fingerprints, pins; then a run by them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from arion.cli import app
from arion.toml_file import write_toml
from client.config import CONSENT_FILE, NODE_FILE
from client.membership import collect, join
from privacy.consent import ConsentError, load_consent
from privacy.identity import IdentityKey, fingerprint
from privacy.ledger.pins import PINS_FILE, load_pins
from privacy.ledger.verify import verify_tree
from tests.service.institutions import Make
from tests.service.running import RunningService
from tests.small_federation import NAMES, Ground


def arion(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def enrol(service: RunningService, home: Path, name: str) -> None:
    join(home, "localhost", service.pair, str(service.home.registry.invite(name)))
    service.home.registry.approve(name)
    collect(home, 5)


def draft(home: Path, ground: Ground, name: str, *options: object) -> Result:
    data = ground.data / f"{name}.jsonl"
    return arion(
        "node", "consent", "draft", home, "--data", data, "--base", ground.base_model,
        "--purpose", "triage", *options,
    )  # fmt: skip


def test_from_drafts_and_telephone_calls_to_a_run(
    institutions: Make, service: RunningService, ground: Ground, tmp_path: Path
) -> None:
    there = institutions()
    homes = there.federation.homes.nodes
    said = {
        name: fingerprint(IdentityKey.load(homes[name] / "identity.key").public_key)
        for name in NAMES
    }
    said["coordinator"] = fingerprint(service.home.key.public_key)
    for name, home in homes.items():
        (home / CONSENT_FILE).unlink()
        (home / NODE_FILE).unlink()
        drafted = draft(home, ground, name)
        assert drafted.exit_code == 0, drafted.output
        for other, read_out in said.items():
            pinned = arion("node", "pin", other, read_out, "--home", home)
            assert pinned.exit_code == 0, pinned.output
        assert "all are pinned" in pinned.output
        rows = json.loads(arion("node", "members", home, "--json").output)
        assert {row["name"]: row["fingerprint"] for row in rows} == said
        assert {row["pin"] for row in rows} == {"pinned"}
        assert len(load_consent(home / CONSENT_FILE).members) == len(NAMES)
    file = tmp_path / "first.toml"
    training = {"rounds": 1, "expected_batch": 40.0, "sequence_length": 24}
    write_toml(file, {
        "model": {"base": str(ground.base_model)},
        "training": training,
        "privacy": {"epsilon": 0.9, "delta": 2.5e-7},
        "federation": {"n_min": 3},
        "service": {"units": dict.fromkeys(NAMES, 32), "deadline_s": 30.0},
    })  # fmt: skip
    there.start(*NAMES)
    made = there.command("submit", str(file))
    assert made.exit_code == 0, made.output
    there.stop()
    for home in homes.values():
        (report,) = verify_tree(home, load_pins(home / PINS_FILE))
        assert (report.failures, report.run_count) == ((), 1)


def test_a_coordinator_that_relays_another_key(
    service: RunningService, ground: Ground, tmp_path: Path
) -> None:
    """The officer was read south's fingerprint; what the coordinator shows is another's."""
    home = tmp_path / "north"
    enrol(service, home, "north")
    assert draft(home, ground, "north").exit_code == 0
    enrol(service, tmp_path / "sybil", "south")
    before = (home / CONSENT_FILE).read_bytes()
    south = fingerprint(IdentityKey.generate().public_key)
    refused = arion("node", "pin", "south", south, "--home", home)
    assert refused.exit_code == 2
    assert "someone is between you: pin nothing" in refused.stderr
    assert (home / CONSENT_FILE).read_bytes() == before
    with pytest.raises(ConsentError):
        load_consent(home / CONSENT_FILE)


def test_mistakes_end_with_one_line(
    service: RunningService, ground: Ground, tmp_path: Path
) -> None:
    home = tmp_path / "north"
    refusals = [(draft(home, ground, "north"), "Join first")]
    join(home, "localhost", service.pair, str(service.home.registry.invite("north")))
    refusals.append((draft(home, ground, "north"), "one that waits"))
    service.home.registry.approve("north")
    collect(home, 5)
    refusals += [
        (draft(home, ground, "nobody"), "nobody"),
        (draft(home, ground, "north", "--delta", "0.5"), "clause 'delta'"),
        (draft(home, Ground(tmp_path / "none", ground.data), "north"), "a model folder"),
        (arion("node", "pin", "mars", "0" * 64, "--home", home), "See arion node members"),
    ]
    assert not (home / NODE_FILE).exists()
    assert draft(home, ground, "north").exit_code == 0
    refusals.append((draft(home, ground, "north"), "Expected no consent.toml"))
    for result, says in refusals:
        assert result.exit_code == 2, result.output
        assert says in result.stderr
        assert result.stderr.count("\n") == 1
    shown = arion("node", "members", home).output
    assert "not pinned" in shown
    invited = arion("node", "invite", "coordinator", "--coordinator", service.home.path)
    assert "not 'coordinator'" in invited.stderr
