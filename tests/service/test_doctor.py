"""`arion node doctor`: a healthy node, and each thing that can be wrong with one."""

import json
import re
import shutil
import tomllib
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import client.doctor
import client.transport
import coordinator.service.pki
from arion.cli import app
from arion.toml_file import write_toml
from client.agent import Agent
from client.config import CONSENT_FILE
from client.doctor import RUNTIME, Finding, examine
from client.membership import MEMBERSHIP_FILE, collect, join
from client.node import Node
from coordinator.service.enrolment import Enrolment
from protos.arion.v1 import service_pb2_grpc as rpc
from tests.service.running import RunningService
from tests.small_federation import SmallFederation

NAMES = (
    "settings", "consent", "files", "histories", "data", "base model", "memory", "disk",
    "certificate", "reachability", "clock and version", "membership",
)  # fmt: skip


@pytest.fixture
def node(service: RunningService, make_federation: Callable[..., SmallFederation]) -> Path:
    """A node that is ready to serve."""
    home = make_federation(seed=None, runtime="arion-grpc").homes.nodes["north"]
    consent = tomllib.loads((home / CONSENT_FILE).read_text())
    write_toml(
        home / CONSENT_FILE,
        consent
        | {"runtimes": ["arion-grpc"], "coordinator_key": service.home.key.public_key.hex()},
    )
    join(home, "localhost", service.pair, str(service.home.registry.invite("north")))
    service.home.registry.approve("north")
    assert collect(home, 5).certificate
    return home


def troubles(home: Path) -> dict[str, Finding]:
    findings = examine(home)
    assert tuple(finding.check for finding in findings) == NAMES
    return {finding.check: finding for finding in findings if finding.level != "ok"}


def test_a_healthy_node_has_no_trouble(node: Path) -> None:
    assert {name: found.level for name, found in troubles(node).items() if name != "disk"} == {}
    result = CliRunner().invoke(app, ["node", "doctor", str(node), "--json"])
    assert result.exit_code == 0, result.output
    assert [found["check"] for found in json.loads(result.stdout)] == list(NAMES)
    assert "records to train on" in result.stdout


def change(name: str, **changes: Any) -> Callable[[Path], None]:
    def act(home: Path) -> None:
        write_toml(home / name, tomllib.loads((home / name).read_text()) | changes)

    return act


def remove(name: str) -> Callable[[Path], None]:
    def act(home: Path) -> None:
        path = home / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def open_to_all(home: Path) -> None:
    (home / "identity.key").chmod(0o644)


def forked(home: Path) -> None:
    (home / "FORK").write_text("two histories\n")


def unreachable(home: Path) -> None:
    path = home / MEMBERSHIP_FILE
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"address": "localhost:1"}))


@pytest.mark.parametrize(
    ("spoil", "check", "says"),
    [
        (change("node.toml", chunk_sequences=0), "settings", "Correct this key"),
        (change("node.toml", data="nowhere.jsonl"), "data", "nowhere"),
        (change("node.toml", base_model="nowhere"), "base model", "Copy the federation's base"),
        (change(CONSENT_FILE, runtimes=["simulate"]), "consent", "clause runtimes"),
        (change(CONSENT_FILE, expires="2020-01-01"), "consent", "new consent signed off"),
        (change(CONSENT_FILE, coordinator_key="ab" * 32), "consent", "that this node joined"),
        (remove(CONSENT_FILE), "consent", "consent.toml"),
        (open_to_all, "files", "chmod 600"),
        (forked, "histories", "officer"),
        (remove(MEMBERSHIP_FILE), "certificate", "Join first"),
        (unreachable, "reachability", "firewall"),
        (change("node.toml", proxy="http://localhost:1"), "reachability", "the proxy at"),
        (change("node.toml", proxy="ftp://x"), "reachability", "proxy.example.org"),
    ],
)
def test_what_is_wrong_is_found(
    node: Path, spoil: Callable[[Path], None], check: str, says: str
) -> None:
    spoil(node)
    found = troubles(node)
    assert found[check].level == "failure"
    assert says in found[check].says
    result = CliRunner().invoke(app, ["node", "doctor", str(node)])
    assert result.exit_code == 1
    assert f"FAIL  {check}: " in result.stdout


@pytest.mark.parametrize(
    ("description", "says"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "got quantised ones"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, "a causal language model"),
    ],
)
def test_a_base_that_no_run_can_train(
    node: Path, tmp_path: Path, description: dict[str, Any], says: str
) -> None:
    pytest.importorskip("transformers")
    base = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **description}
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(base))
    weights = {"transformer.wte.weight": torch.zeros(4, 4)}
    save_file(weights, tmp_path / "base" / "model.safetensors")
    change("node.toml", base_model=str(tmp_path / "base"))(node)
    found = troubles(node)["base model"]
    assert (found.level, says in found.says) == ("failure", True)


@pytest.fixture
def never_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an agent would serve until somebody stops it."""
    monkeypatch.setattr(Agent, "run", lambda self: pytest.fail("it serves"))


def test_what_several_checks_need_is_said_once(node: Path) -> None:
    (node / "node.toml").unlink()
    found = troubles(node)
    assert "arion node consent draft" in found["settings"].says
    for check in ("consent", "data", "base model", "memory"):
        assert found[check] == Finding(check, "failure", "not looked at: see settings")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (change("node.toml", data="nowhere.jsonl"), "Bring it back"),
        (change("node.toml", base_model="nowhere"), "Copy the federation's base"),
        (change(CONSENT_FILE, members={"north": "ab" * 32}), "clause 'members'"),
        (change(CONSENT_FILE, coordinator_key=""), "coordinator_key"),
        (remove(CONSENT_FILE), "consent.toml"),
        (remove(MEMBERSHIP_FILE), "Join first"),
    ],
)
def test_a_node_that_cannot_serve_says_so_at_once(
    node: Path, spoil: Callable[[Path], None], says: str, never_serves: None
) -> None:
    spoil(node)
    result = CliRunner().invoke(app, ["node", "run", str(node)])
    assert result.exit_code == 2, result.output
    assert says in result.stderr


def test_a_second_agent_of_a_home_says_so_at_once(node: Path, never_serves: None) -> None:
    with closing(Node(node, RUNTIME)):
        result = CliRunner().invoke(app, ["node", "run", str(node)])
    assert result.exit_code == 2, result.output
    assert "Stop the other process" in result.stderr


def test_a_revoked_node_learns_it(service: RunningService, node: Path) -> None:
    service.home.registry.revoke("north")
    found = troubles(node)
    said = found.pop("membership").says
    assert "'north', which is revoked" in said
    assert said.endswith("(revoked)")
    assert set(found) <= {"disk"}


@pytest.mark.parametrize(
    ("skew_s", "level"), [(0, "ok"), (60, "warning"), (-60, "warning"), (600, "failure")]
)
def test_clocks_that_disagree(
    node: Path, monkeypatch: pytest.MonkeyPatch, skew_s: float, level: str
) -> None:
    now = client.doctor.time.time
    monkeypatch.setattr(client.doctor, "time", SimpleNamespace(time=lambda: now() - skew_s))
    levels = {found.check: found for found in examine(node)}
    assert levels["clock and version"].level == level
    if level != "ok":
        side = "behind" if skew_s > 0 else "ahead of"
        assert f"{abs(skew_s)} s {side}" in levels["clock and version"].says


def test_a_certificate_of_the_future_is_a_matter_of_clocks(
    node: Path, service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.stop_serving()
    monkeypatch.setattr(coordinator.service.pki, "_CLOCK_SKEW", timedelta(days=-1))
    ahead = RunningService(service.home)
    try:
        places = {"address": ahead.address, "enrolment_address": f"localhost:{ahead.pair[1]}"}
        path = node / MEMBERSHIP_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | places))
        found = troubles(node)["clock and version"]
    finally:
        ahead.stop()
    assert found.level == "failure"
    assert "this machine's clock" in found.says


def test_versions_that_are_too_far_apart(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.doctor, "PROTOCOL", 9)
    monkeypatch.setattr(client.doctor, "OLDEST_PROTOCOL", 8)
    assert troubles(node)["clock and version"].level == "failure"


@pytest.fixture
def version_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Enrolment, "Hello", rpc.EnrolmentServicer.Hello)


def test_a_coordinator_of_version_1_is_too_old(version_1: None, node: Path) -> None:
    found = troubles(node)["clock and version"]
    assert found.level == "failure"
    assert "version 1" in found.says


def test_little_memory_and_a_full_disk(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.doctor, "available_memory", lambda: 1)
    for free, level in ((1 << 30, "warning"), (1 << 20, "failure")):
        usage = SimpleNamespace(disk_usage=lambda path, free=free: SimpleNamespace(free=free))
        monkeypatch.setattr(client.doctor, "shutil", usage)
        found = troubles(node)
        assert found["disk"].level == level
        assert found["memory"].level == "warning"
        assert re.search("takes about .* GB with adapters, .* GB in full", found["memory"].says)
