"""After a theft or a loss: the runbooks of docs/deploy.md, walked by their own commands."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import client.app
from arion.cli import app
from client.config import CONSENT_FILE
from client.histories import FORK_FILE, RESTORED_FILE
from client.membership import MEMBERSHIP_FILE, MembershipFile, collect, join
from client.node import Node
from client.transport import Link, LinkLost
from coordinator.errors import RestoredLedgerError, RunError
from coordinator.service.backup import back_up
from coordinator.service.home import ServiceHome
from coordinator.service.pki import Authority, PkiError
from coordinator.service.restore import restore
from privacy.consent import load_consent
from privacy.ledger.head import verify_head
from tests.service.institutions import Institutions, Make
from tests.service.running import RunningService
from tests.small_federation import FEDERATION, NAMES

PASSPHRASE = b"a passphrase of some length"
Serve = Callable[[Institutions, Path], None]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Have a home served in the place of the one that was."""
    begun: list[RunningService] = []

    def serve(there: Institutions, home: Path) -> None:
        there.service = RunningService(ServiceHome.open(home))
        begun.append(there.service)

    yield serve
    for service in begun:
        service.stop()
        service.home.close()


def coordinator(*words: object) -> Result:
    return CliRunner().invoke(app, ["coordinator", *map(str, words)])


def ready(institutions: Make) -> Institutions:
    """Members that listen, and whose budgets hold three runs."""
    there = institutions(rounds=1)
    for name in NAMES:
        there.consent(name, epsilon=180.0, delta=3e-5)
    there.start(*NAMES)
    return there


def rejoin(there: Institutions) -> None:
    for name in NAMES:
        home = there.federation.homes.nodes[name]
        (home / MEMBERSHIP_FILE).unlink()
        join(home, "localhost", there.service.pair, str(there.service.home.registry.invite(name)))
        there.service.home.registry.approve(name)
        assert collect(home, 5).certificate


def end(there: Institutions, *, nodes: bool = True) -> Path:
    """Stop service and nodes; return where the service's home is."""
    there.stop()
    if nodes:
        client.app.close_nodes()  # else their processes go on, and know the epochs they were in
    there.service.stop_serving()
    return Path(os.path.relpath(there.service.home.path))


def test_an_authority_whose_key_was_stolen(institutions: Make, serve: Serve) -> None:
    there = ready(institutions)
    there.run("first")
    stolen = MembershipFile(there.federation.homes.nodes["north"]).load()
    invitation = str(there.service.home.registry.invite("late"))
    refused = coordinator("replace-authority", there.service.home.path)
    assert (refused.exit_code, "nobody serves" in refused.stderr) == (2, True)
    home = end(there)
    done = coordinator("replace-authority", home)
    assert done.exit_code == 0, done.output
    assert "1 open invitations were dropped" in done.output
    serve(there, home)
    link = Link(there.service.address, stolen.credentials)
    with pytest.raises(LinkLost):
        link.is_member()
    link.close()
    with pytest.raises(LinkLost):
        join(home / "late", "localhost", there.service.pair, invitation)
    rejoin(there)
    there.start(*NAMES)
    there.run("second")
    assert [body["run"] for body in there.bodies("coordinator", "run-opened")] == [
        "first",
        "second",
    ]
    assert there.verified()["coordinator"].rounds == 2


def test_an_authority_that_was_half_replaced(tmp_path: Path) -> None:
    """Killed between its two files, no home is opened by a key that is not its certificate's."""
    home = tmp_path / "srv"
    coordinator("init", home, "--federation", "f", "--host", "h")
    half = (home / "ca.pem").read_bytes()
    Authority.create(home, "f")
    (home / "ca.pem").write_bytes(half)
    with pytest.raises(PkiError, match="replace-authority again"):
        ServiceHome.open(home)
    assert coordinator("replace-authority", home).exit_code == 0
    ServiceHome.open(home).close()


def test_a_coordinator_whose_signing_key_was_stolen(
    institutions: Make, serve: Serve, tmp_path: Path
) -> None:
    there = ready(institutions)
    there.run("first")
    old_key, old = there.key, end(there)
    new = tmp_path / "new"
    made = ["--federation", FEDERATION, "--host", "localhost", "--port", "0"]
    made += ["--enrolment-port", "0", "--follows", str(old)]
    result = coordinator("init", new, *made)
    assert result.exit_code == 0, result.output
    assert "4 members may go on" in result.output
    serve(there, new)
    assert there.key != old_key
    rejoin(there)
    for name in NAMES:  # the officers compared the new fingerprint
        there.consent(name, coordinator_key=there.key)
    there.start(*NAMES)
    there.run("second")
    for name in NAMES:
        home = there.federation.homes.nodes[name]
        assert load_consent(home / CONSENT_FILE).coordinator_key == there.key
        assert [body["run"] for body in there.bodies(name, "run-reserved")] == ["first", "second"]
        assert len(list(home.glob("coordinator.earlier-*.json"))) == 1
        assert not (home / FORK_FILE).exists()
        assert not (home / RESTORED_FILE).exists()
        there.consent(name, coordinator_key=old_key)  # should an officer pin the old one again
        client.app.close_nodes()
        with closing(Node(home, "arion-grpc")) as node:
            assert node.held_head() is not None
            verify_head(bytes.fromhex(old_key), node.held_head())
    assert [body["run"] for body in there.bodies("coordinator", "run-opened")] == ["second"]


def test_a_coordinator_that_follows_nobody_is_told_what_is_missing(
    institutions: Make, serve: Serve, tmp_path: Path
) -> None:
    there = ready(institutions)
    there.run("first")
    end(there)
    new, made = tmp_path / "new", ["--federation", FEDERATION, "--host", "localhost"]
    made += ["--port", "0", "--enrolment-port", "0"]
    empty = coordinator("init", new, *made, "--follows", tmp_path / "nowhere")
    assert (empty.exit_code, "Name the home" in empty.stderr) == (2, True)
    assert coordinator("init", new, *made).exit_code == 0
    serve(there, new)
    rejoin(there)
    for name in NAMES:
        there.consent(name, coordinator_key=there.key)
    there.start(*NAMES)
    with pytest.raises(RunError, match="init --follows"):
        there.run("second")


def test_an_older_backup_stops_itself_whatever_epochs_followed_it(
    institutions: Make, serve: Serve, tmp_path: Path
) -> None:
    """Members refuse old epochs before they are shown a ledger: the cause would never be said."""
    there = ready(institutions)
    there.run("first")
    back_up(there.service.home, tmp_path / "monday.tar", PASSPHRASE)
    there.run("second")
    before = [len(there.bodies(name, "release-debited")) for name in NAMES]
    end(there, nodes=False)
    restore(tmp_path / "monday.tar", tmp_path / "restored", PASSPHRASE, None)
    serve(there, tmp_path / "restored")
    rejoin(there)
    there.start(*NAMES)
    with pytest.raises(RestoredLedgerError, match="Restore the newest backup"):
        there.run("third")
    assert [len(there.bodies(name, "release-debited")) for name in NAMES] == before
    assert not any((home / FORK_FILE).exists() for home in there.federation.homes.nodes.values())
