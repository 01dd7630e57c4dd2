"""A stolen connection key is of no use for long: renewals are signed, operators force new keys."""

import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arion.cli import app
from client.agent import Agent
from client.membership import MembershipFile, renew, rotate
from client.transport import Link
from privacy.enrolment import new_connection_key, renew_payload, signing_request
from privacy.identity import IdentityKey
from tests.service.conftest import RunningService
from tests.service.members import enrol, refused
from tests.service.postgresql import on_both


def arion(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_a_stolen_connection_key_does_not_renew_itself(
    service: RunningService, tmp_path: Path
) -> None:
    """From its joining on, a renewal without the member's identity key is refused."""
    enrol(service, tmp_path).close()
    stolen = MembershipFile(tmp_path).load().credentials
    thief, csr = Link(service.address, stolen), signing_request(new_connection_key(), "x")
    refused("bad-signature", lambda: thief.renew(csr, b""))
    foreign = IdentityKey.generate().sign("renew", renew_payload(csr)).signature
    refused("bad-signature", lambda: thief.renew(csr, foreign))
    identity = IdentityKey.load(tmp_path / "identity.key")
    other = signing_request(new_connection_key(), "x")
    of_another = identity.sign("renew", renew_payload(other)).signature
    refused("bad-signature", lambda: thief.renew(csr, of_another))
    joined = identity.sign("join", renew_payload(csr)).signature  # signed for another purpose
    refused("bad-signature", lambda: thief.renew(csr, joined))
    renew(tmp_path, thief)
    thief.close()


@on_both
def test_an_operator_forces_a_new_certificate(service: RunningService, tmp_path: Path) -> None:
    """The old one is refused on every route but renewal, also after the node has renewed."""
    link = enrol(service, tmp_path)
    old = MembershipFile(tmp_path).load().credentials
    assert arion("node", "rotate", "north", "--coordinator", service.home.path)[0] == 0
    refused("rotate", lambda: link.answer("0" * 32, "Done", b"", b""))
    refused("rotate", lambda: next(link.listen(30)))
    thief = Link(service.address, old)
    csr = signing_request(new_connection_key(), "x")
    refused("bad-signature", lambda: thief.renew(csr, b""))
    membership = renew(tmp_path, link)
    renewed = Link(service.address, membership.credentials)
    assert renewed.answer("0" * 32, "Done", b"", b"") is False
    refused("rotate", lambda: thief.answer("0" * 32, "Done", b"", b""))
    assert renew(tmp_path, renewed).certificate != membership.certificate
    for each in (link, thief, renewed):
        each.close()


def test_a_running_node_renews_when_it_is_told(service: RunningService, tmp_path: Path) -> None:
    """Its stream is closed, it makes a new key, listens again, and answers."""
    enrol(service, tmp_path).close()
    before = MembershipFile(tmp_path).load().key
    agent = Agent(tmp_path, lambda *question: ("Done", b"", b""))
    thread = threading.Thread(target=agent.run, daemon=True)
    thread.start()
    (member,) = service.home.registry.members()
    mailbox = service.home.mailbox

    def ask() -> None:
        message = mailbox.post("r", member.address, "query.head", ("HeadQuery", b"", b""))
        end = time.monotonic() + 20
        while mailbox.first_answer([message]) is None:
            assert time.monotonic() < end
            time.sleep(0.02)

    ask()
    service.home.registry.rotate("north")
    end = time.monotonic() + 20
    while MembershipFile(tmp_path).load().key == before:
        assert time.monotonic() < end
        time.sleep(0.02)
    ask()
    agent.stop()
    thread.join(20)
    assert not thread.is_alive()


def test_an_institution_makes_a_new_key_at_once(service: RunningService, tmp_path: Path) -> None:
    enrol(service, tmp_path).close()
    before = MembershipFile(tmp_path).load()
    code, said = arion("node", "rotate", "--home", tmp_path)
    assert (code, "north has a new key" in said) == (0, True)
    after = MembershipFile(tmp_path).load()
    assert after.key != before.key
    service.home.registry.revoke("north")
    with pytest.raises(ValueError, match="'north', which is revoked"):
        rotate(tmp_path)
    code, said = arion("node", "rotate", "north", "--coordinator", service.home.path)
    assert (code, "which is revoked" in said) == (2, True)
    assert MembershipFile(tmp_path).load() == after


@pytest.mark.parametrize("arguments", [[], ["north"], ["--home", "x", "--coordinator", "y"]])
def test_rotate_is_told_whose_side_it_is_on(arguments: list[str]) -> None:
    code, said = arion("node", "rotate", *arguments)
    assert code == 2
    assert "--home alone" in said
