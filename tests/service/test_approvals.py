"""Approval by two operators, as an option: two signatures of two people, over this very request."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arion.cli import app
from client.config import NodeError
from client.membership import MembershipFile, collect, join
from coordinator.service.approvals import ApprovalError, sign_approval
from coordinator.service.home import ServiceHome
from coordinator.service.registry import Registry
from privacy.identity import IdentityKey
from tests.service.conftest import RunningService, with_settings
from tests.service.postgresql import on_both


@pytest.fixture
def joined(service_home: ServiceHome, tmp_path: Path) -> Callable[[str, str], Path]:
    """A service that asks for two approvals; a function that has someone join it."""
    home = with_settings(service_home, approvals=2)
    registry = Registry(home.engine, home.authority, home.settings.federation, 2)
    text = home.settings.model_dump_json()
    (home.path / "service.json").write_text(text)
    running = RunningService(ServiceHome(**{**vars(home), "registry": registry}))

    def join_as(name: str, role: str) -> Path:
        folder = tmp_path / name
        join(folder, "localhost", running.pair, str(registry.invite(name, role)))
        return folder

    yield join_as
    running.stop()


def approve(home: ServiceHome, name: str, operator: Path | None = None) -> str:
    options = ["--coordinator", str(home.path)]
    options += ["--operator", str(operator)] if operator else []
    result = CliRunner().invoke(app, ["node", "approve", name, *options])
    assert result.exit_code in (0, 2)
    return result.output


@on_both
def test_two_operators_approve_and_one_does_not(
    joined: Callable[[str, str], Path], service_home: ServiceHome, tmp_path: Path
) -> None:
    north = joined("north", "node")
    assert "two operators before" in approve(service_home, "north")
    homes = {name: joined(name, "operator") for name in ("anna", "bert", "carl")}
    for name in ("anna", "bert"):
        assert "may connect" in approve(service_home, name)
        assert collect(homes[name], 5).certificate
    assert "--operator HOME" in approve(service_home, "north")
    assert "waits for another operator" in approve(service_home, "north", homes["anna"])
    assert "waits for another operator" in approve(service_home, "north", homes["anna"])
    assert "active operator" in approve(service_home, "north", homes["carl"])  # he waits himself
    assert collect(north, 0).certificate == ""
    assert "may connect" in approve(service_home, "north", homes["bert"])
    assert collect(north, 5).certificate
    assert "waits for another operator" in approve(service_home, "carl", homes["anna"])
    assert "may connect" in approve(service_home, "carl", homes["bert"])


@on_both
def test_one_operator_alone_lets_nobody_in(
    joined: Callable[[str, str], Path], service_home: ServiceHome, tmp_path: Path
) -> None:
    """By revoking the other, by waiting until it joins again, or by another role for either."""
    homes = {name: joined(name, "operator") for name in ("anna", "bert")}
    for name in homes:
        approve(service_home, name)
    puppet = joined("puppet", "node")
    for home in homes.values():
        approve(service_home, "puppet", home)
    for home, role in ((puppet, "operator"), (homes["bert"], "node")):
        membership = (home / "membership.json").read_bytes()
        (home / "membership.json").unlink()
        with pytest.raises(NodeError, match="Expected the role in which"):
            joined(home.name, role)
        (home / "membership.json").write_bytes(membership)
    joined("carl", "operator")
    service_home.registry.revoke("bert")
    assert "sets approvals to 1" in approve(service_home, "carl")
    assert "sets approvals to 1" in approve(service_home, "carl", homes["anna"])
    (homes["bert"] / "membership.json").unlink()
    joined("bert", "operator")
    for name in ("bert", "carl"):  # who was revoked comes back as anybody else
        assert "sets approvals to 1" in approve(service_home, name)
        assert "sets approvals to 1" in approve(service_home, name, homes["anna"])


def test_that_there_were_two_is_known_however_soon_one_left(
    joined: Callable[[str, str], Path], service_home: ServiceHome
) -> None:
    """Nobody was approved while there were two, and of who was revoked no certificate is left."""
    homes = {name: joined(name, "operator") for name in ("anna", "bert")}
    for name in homes:
        approve(service_home, name)
    service_home.registry.revoke("bert")
    (homes["bert"] / "membership.json").unlink()
    joined("bert", "operator")
    for signer in (None, homes["anna"]):
        assert "sets approvals to 1" in approve(service_home, "bert", signer)


def test_an_operator_that_comes_back_is_let_in_by_the_other(
    joined: Callable[[str, str], Path], service_home: ServiceHome
) -> None:
    """Two of them would else be locked out whenever one was away for longer than a day."""
    homes = {name: joined(name, "operator") for name in ("anna", "bert")}
    for name in homes:
        approve(service_home, name)
    (homes["bert"] / "membership.json").unlink()
    joined("bert", "operator")
    assert "--operator HOME" in approve(service_home, "bert")
    assert "may connect" in approve(service_home, "bert", homes["anna"])
    joined("carl", "operator")
    assert "waits for another" in approve(service_home, "carl", homes["anna"])
    assert "may connect" in approve(service_home, "carl", homes["bert"])


def test_a_signature_that_nobody_asked_for(service: RunningService, tmp_path: Path) -> None:
    """Whoever gives it takes two approvals for needed."""
    registry = service.home.registry
    join(tmp_path / "north", "localhost", service.pair, str(registry.invite("north")))
    said = approve(service.home, "north", tmp_path / "north")
    assert "Leave out --operator" in said
    assert registry.waiting("north").name == "north"
    assert "may connect" in approve(service.home, "north")


def test_signatures_are_of_this_request_and_by_active_operators(
    joined: Callable[[str, str], Path], service_home: ServiceHome
) -> None:
    registry = Registry(
        service_home.engine, service_home.authority, service_home.settings.federation, 2
    )
    homes = {name: joined(name, "operator") for name in ("anna", "bert")}
    for name in homes:
        approve(service_home, name)
    joined("north", "node")
    joined("south", "node")
    federation = service_home.settings.federation
    anna = IdentityKey.load(homes["anna"] / "identity.key")
    north, south = registry.waiting("north"), registry.waiting("south")
    wrong = [
        sign_approval(anna, "anna", federation, south),
        sign_approval(anna, "anna", "another federation", north),
        sign_approval(anna, "bert", federation, north),
        sign_approval(IdentityKey.generate(), "anna", federation, north),
    ]
    for approval in wrong:
        with pytest.raises(ApprovalError, match="this very request"):
            registry.approve("north", approval)
    member = registry.approve("north", sign_approval(anna, "anna", federation, north))
    assert member.status == "pending"
    registry.revoke("anna")  # then her approval no longer counts
    bert = IdentityKey.load(homes["bert"] / "identity.key")
    with pytest.raises(ApprovalError, match="two operators"):
        registry.approve("north", sign_approval(bert, "bert", federation, north))
    assert MembershipFile(homes["anna"]).load().name == "anna"
