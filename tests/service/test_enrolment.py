"""Joining: an invitation, once; an operator's approval; a name that stays its owner's."""

import hashlib
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from arion.cli import app
from client.agent import Agent
from client.config import NodeError
from client.membership import MEMBERSHIP_FILE, MembershipFile, collect, join
from client.transport import Link, LinkLost
from coordinator.service.bindings import RegistryError
from coordinator.service.home import ServiceHome
from coordinator.service.pki import Authority
from privacy.enrolment import (
    EnrolmentError,
    Invitation,
    join_payload,
    new_connection_key,
    signing_request,
)
from privacy.identity import IdentityKey
from tests.service.members import enrol, refused
from tests.service.postgresql import on_both
from tests.service.running import RunningService


@on_both
def test_a_node_joins_is_approved_and_is_known(service: RunningService, tmp_path: Path) -> None:
    registry = service.home.registry
    invitation = registry.invite("north")
    joined = join(tmp_path, "localhost", service.pair, str(invitation))
    assert joined.name == "north"
    assert collect(tmp_path, 0).certificate == ""
    (waiting,) = registry.members()
    assert (waiting.name, waiting.status) == ("north", "pending")
    assert waiting.identity_key == IdentityKey.load(tmp_path / "identity.key").public_key
    registry.approve("north")
    membership = collect(tmp_path, 5)
    assert membership.federation == service.home.settings.federation
    assert membership.coordinator_key == service.home.key.public_key.hex()
    assert (tmp_path / MEMBERSHIP_FILE).stat().st_mode & 0o777 == 0o600
    link = Link(service.address, membership.credentials)
    assert link.answer("0" * 32, "Done", b"", b"") is False  # nobody asked: known, and over
    link.close()


@on_both
def test_an_invitation_is_for_one_node_once(service: RunningService, tmp_path: Path) -> None:
    invitation = str(service.home.registry.invite("north"))
    join(tmp_path / "a", "localhost", service.pair, invitation)
    join(tmp_path / "a", "localhost", service.pair, invitation)  # the same request, after a crash
    with pytest.raises(NodeError, match="was not used"):
        join(tmp_path / "b", "localhost", service.pair, invitation)
    assert [member.name for member in service.home.registry.members()] == ["north"]


@on_both
def test_a_revocation_beside_an_approval_stands(
    service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The approval has read that the node waits, and is about to say that it is active."""
    registry = service.home.registry
    join(tmp_path, "localhost", service.pair, str(registry.invite("north")))
    revoking = threading.Thread(target=registry.revoke, args=("north",))
    issue = registry._issue

    def issue_later(*arguments: object) -> bytes:
        revoking.start()
        revoking.join(1.0)  # it goes through at once, or waits for the approval
        return issue(*arguments)

    monkeypatch.setattr(registry, "_issue", issue_later)
    registry.approve("north")
    revoking.join(20)
    assert not revoking.is_alive()
    (member,) = registry.members()
    assert member.status == "revoked"


@on_both
def test_an_invitation_expires(service_home: ServiceHome, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = service_home.registry
    invitation = registry.invite("north")
    key, identity = new_connection_key(), IdentityKey.generate()
    csr = signing_request(key, "x")
    signed = identity.sign("join", join_payload(invitation.digest, csr))
    monkeypatch.setattr(registry, "_clock", lambda: time.time() + 8 * 24 * 3600)
    with pytest.raises(RegistryError, match="valid and was not used"):
        registry.join(invitation.secret, csr, identity.public_key, signed.signature)


def test_the_database_holds_no_secret(service_home: ServiceHome, tmp_path: Path) -> None:
    invitation = service_home.registry.invite("north")
    raw = b"".join(
        path.read_bytes() for path in (tmp_path / "service").rglob("*") if path.is_file()
    )
    assert invitation.secret not in raw
    assert invitation.digest.encode() in raw
    assert str(invitation) not in repr(invitation)


@pytest.mark.parametrize("wrong", ["identity", "request", "invitation"])
def test_a_request_is_bound_to_its_identity(service_home: ServiceHome, wrong: str) -> None:
    """Whoever intercepts a request cannot put another key under it."""
    registry, identity = service_home.registry, IdentityKey.generate()
    invitation = registry.invite("north")
    csr, other = (signing_request(new_connection_key(), "x") for _ in range(2))
    digest = "0" * 64 if wrong == "invitation" else invitation.digest
    signed = identity.sign("join", join_payload(digest, csr))
    public = IdentityKey.generate().public_key if wrong == "identity" else identity.public_key
    with pytest.raises(RegistryError) as caught:
        registry.join(
            invitation.secret, other if wrong == "request" else csr, public, signed.signature
        )
    assert caught.value.code == "bad-signature"
    assert registry.members() == []


@on_both
def test_names_and_roles_are_checked_and_approval_comes_once(service_home: ServiceHome) -> None:
    registry = service_home.registry
    for name, role in (("North", "node"), ("../x", "node"), ("n" * 64, "node"), ("n", "root")):
        with pytest.raises(RegistryError, match="a-z"):
            registry.invite(name, role)
    with pytest.raises(RegistryError, match="nobody"):
        registry.approve("north")
    with pytest.raises(RegistryError, match="Expected a member"):
        registry.revoke("north")


@on_both
def test_an_invitation_is_listed_and_withdrawn(service: RunningService, tmp_path: Path) -> None:
    registry = service.home.registry
    token = str(registry.invite("north"))
    registry.invite("south", "auditor")
    assert [(name, role) for name, role, _ in registry.invitations()] == [
        ("north", "node"),
        ("south", "auditor"),
    ]
    listed = CliRunner().invoke(app, ["node", "list", "--coordinator", str(service.home.path)])
    assert "invited  until 20" in listed.output
    assert registry.revoke("north") == 1
    with pytest.raises(NodeError, match="an invitation that is valid"):
        join(tmp_path / "north", "localhost", service.pair, token)
    assert [name for name, _, _ in registry.invitations()] == ["south"]
    enrol(service, tmp_path / "west", "west").close()
    registry.invite("west")
    assert registry.revoke("west") == 1
    assert [(m.name, m.status) for m in registry.members()] == [("west", "revoked")]
    assert registry.revoke("west") == 0


@pytest.mark.parametrize("text", ["", "arion1.abc", "arion2.a.b", "arion1.####.####"])
def test_what_is_no_invitation(text: str, tmp_path: Path) -> None:
    with pytest.raises(EnrolmentError, match="Expected"):
        Invitation.parse(text)
    with pytest.raises(NodeError, match="Expected"):
        join(tmp_path, "localhost", (1, 2), text)


def test_an_invitation_with_an_altered_certificate(service: RunningService, tmp_path: Path) -> None:
    """TLS does not check a root's own signature: the altered one would be trusted, and kept."""
    token = str(service.home.registry.invite("north"))
    last = "A" if token[-8] != "A" else "B"
    with pytest.raises(NodeError, match="Copy it again"):
        join(tmp_path, "localhost", service.pair, token[:-8] + last + token[-7:])
    assert join(tmp_path, "localhost", service.pair, token).name == "north"


def test_a_mistyped_port_is_corrected_by_the_same_command(
    service: RunningService, tmp_path: Path
) -> None:
    token = str(service.home.registry.invite("north"))
    with pytest.raises(LinkLost):
        join(tmp_path, "localhost", (1, 2), token)
    key = MembershipFile(tmp_path).load().key
    found = join(tmp_path, "localhost", service.pair, token)
    assert found.name == "north"
    assert found.key == key
    service.home.registry.approve("north")
    assert collect(tmp_path, 5).certificate
    enrolled = MembershipFile(tmp_path).load()
    assert enrolled.address.endswith(f":{service.ports.exchange}")


def test_who_waits_keeps_its_request_whatever_it_is_given(
    service: RunningService, tmp_path: Path
) -> None:
    join(tmp_path / "node", "localhost", service.pair, str(service.home.registry.invite("north")))
    before = (tmp_path / "node" / MEMBERSHIP_FILE).read_bytes()
    (tmp_path / "other").mkdir()
    token = str(Invitation.new(Authority.create(tmp_path / "other", "other").pem))
    with pytest.raises(NodeError, match="that 'north' waits for"):
        join(tmp_path / "node", "localhost", service.pair, token)
    assert (tmp_path / "node" / MEMBERSHIP_FILE).read_bytes() == before
    service.home.registry.approve("north")
    assert collect(tmp_path / "node", 5).certificate


def test_another_authority_is_not_talked_to(service: RunningService, tmp_path: Path) -> None:
    """An invitation with a foreign authority, as a man in the middle would hand out."""
    other = Authority.create(tmp_path, "other")
    token = str(Invitation.new(other.pem))
    with pytest.raises(LinkLost):
        join(tmp_path / "node", "localhost", service.pair, token)


def test_a_home_that_has_joined_is_not_overwritten(service: RunningService, tmp_path: Path) -> None:
    enrol(service, tmp_path).close()
    before = hashlib.sha256((tmp_path / MEMBERSHIP_FILE).read_bytes()).digest()
    token = str(service.home.registry.invite("south"))
    with pytest.raises(NodeError, match="has not joined"):
        join(tmp_path, "localhost", service.pair, token)
    assert hashlib.sha256((tmp_path / MEMBERSHIP_FILE).read_bytes()).digest() == before


@on_both
def test_a_member_comes_back_with_its_identity_and_nobody_else_does(
    service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that was away for longer than its certificate lives joins again, under its name."""
    enrol(service, tmp_path / "node").close()
    registry = service.home.registry
    with pytest.raises(NodeError, match="joined before"):
        join(tmp_path / "thief", "localhost", service.pair, str(registry.invite("north")))
    (member,) = registry.members()
    assert member.status == "active"
    later = SimpleNamespace(now=lambda zone: datetime.now(zone) + timedelta(hours=25))
    with monkeypatch.context() as patch:
        patch.setattr("client.membership.datetime", later)
        with pytest.raises(NodeError, match="away too long"):
            _ = MembershipFile(tmp_path / "node").load().due_in_s
        again = join(tmp_path / "node", "localhost", service.pair, str(registry.invite("north")))
    (waiting,) = registry.members()
    assert (waiting.address, waiting.identity_key) == (member.address, member.identity_key)
    assert waiting.status == "pending"
    registry.approve("north")
    renewed = Link(service.address, collect(tmp_path / "node", 5).credentials)
    assert renewed.answer("0" * 32, "Done", b"", b"") is False
    renewed.close()
    assert again.name == "north"


def test_other_roles_have_no_messages(service: RunningService, tmp_path: Path) -> None:
    registry = service.home.registry
    join(tmp_path, "localhost", service.pair, str(registry.invite("clerk", "auditor")))
    registry.approve("clerk")
    link = Link(service.address, collect(tmp_path, 5).credentials)
    refused("wrong-role", lambda: next(link.listen(30)))
    refused("wrong-role", lambda: link.answer("0" * 32, "Done", b"", b""))
    link.close()


def test_a_node_that_was_not_approved_does_not_serve(
    service: RunningService, tmp_path: Path
) -> None:
    join(tmp_path, "localhost", service.pair, str(service.home.registry.invite("north")))
    with pytest.raises(NodeError, match="was approved"):
        Agent(tmp_path, lambda *question: ("Done", b"", b"")).run()
