"""Artefacts that the service serves: who may have what, stops, and other bytes."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import client.membership
import coordinator.service.artefacts
from arion.cli import app
from client.artefacts import Fetch, fetch_served, served_index
from client.config import NodeError
from client.membership import MembershipFile, dialled
from client.transport import Link, LinkLost, LinkRefused
from coordinator.service.home import ServiceHome
from models.variants.index import Entry, RegistryError, artefact_path
from models.variants.names import PASSPORT
from models.variants.registry import add_artefact, create_registry, revoke
from tests.service.conftest import with_settings
from tests.service.members import refused
from tests.service.running import RunningService
from tests.service.test_operations import joined_as
from tests.variants.test_registry import made

__all__ = ["made"]  # a fixture
WEIGHTS = "model.onnx.data"


@pytest.fixture
def registry(service_home: ServiceHome) -> Path:
    create_registry(service_home.path / "registry")
    return service_home.path / "registry"


@pytest.fixture
def entry(registry: Path, made: Path) -> Entry:
    return add_artefact(registry, made / "a")


@pytest.fixture
def node(service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(coordinator.service.artefacts, "CHUNK_BYTES", 5000)
    joined_as(service, tmp_path / "node", "clinic", "node")
    return tmp_path / "node"


@pytest.fixture
def link(node: Path) -> Iterator[Link]:
    with dialled(node) as opened:
        yield opened


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def want(entry: Entry, out: Path) -> Fetch:
    return Fetch(entry.digest[:9], out, check=lambda folder: None)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["model", "registry", *map(str, arguments)])


class Flaky:
    """A link that is lost after so many chunks of each call, so many times."""

    def __init__(self, link: Link, chunks: int, losses: int) -> None:
        self._link, self._chunks, self.losses = link, chunks, losses
        self.index, self.offsets = link.index, list[int]()

    def pull(self, artefact: bytes, file: str, offset: int) -> Iterator[bytes]:
        if file == WEIGHTS:
            self.offsets.append(offset)
        for number, chunk in enumerate(self._link.pull(artefact, file, offset)):
            if file == WEIGHTS and self.losses and number == self._chunks:
                self.losses -= 1
                raise LinkLost("lost")
            yield chunk


class Lying:
    """A coordinator that says what it likes: files by name."""

    def __init__(self, index: bytes, said: dict[str, bytes]) -> None:
        self._index, self._said = index, said

    def index(self) -> bytes:
        return self._index

    def pull(self, artefact: bytes, file: str, offset: int) -> Iterator[bytes]:
        yield self._said[file][offset:]


def test_a_member_lists_and_fetches(
    entry: Entry, registry: Path, node: Path, made: Path, tmp_path: Path
) -> None:  # fmt: skip
    shown, own = (command("list", source, "--json") for source in (node, registry))
    assert shown.exit_code == own.exit_code == 0, shown.stderr
    assert json.loads(shown.stdout) == json.loads(own.stdout)
    result = command("fetch", node, entry.digest[:9], "--out", tmp_path / "out")
    assert (result.exit_code, "--unsigned" in result.stderr) == (2, True)  # nobody signed it
    assert not (tmp_path / "out").exists()
    result = command("fetch", node, entry.digest[:9], "--out", tmp_path / "out", "--unsigned")
    assert result.exit_code == 0, result.stderr
    assert files(tmp_path / "out") == files(made / "a")
    result = command("fetch", node, entry.digest[:9], "--out", tmp_path / "out", "--unsigned")
    assert (result.exit_code, "Choose another place" in result.stderr) == (2, True)


def test_where_there_is_no_registry_nothing_is_served(link: Link) -> None:
    assert not served_index(link).artefacts


def test_a_lost_connection_goes_on_where_it_was(
    entry: Entry, link: Link, made: Path, tmp_path: Path
) -> None:  # fmt: skip
    flaky = Flaky(link, chunks=2, losses=3)
    waits: list[float] = []
    fetch_served(flaky, want(entry, tmp_path / "out"), waits.append)
    assert files(tmp_path / "out") == files(made / "a")
    assert flaky.offsets == [0, 10_000, 20_000, 30_000]
    assert len(waits) == 3


def test_a_fetch_that_was_given_up_goes_on_in_the_next(
    entry: Entry, link: Link, made: Path, tmp_path: Path
) -> None:  # fmt: skip
    flaky = Flaky(link, chunks=2, losses=1)
    with pytest.raises(LinkLost):
        fetch_served(Flaky(link, 2, 1), want(entry, tmp_path / "out"), _give_up)
    assert not (tmp_path / "out").exists()
    flaky.losses = 0
    fetch_served(flaky, want(entry, tmp_path / "out"))
    assert flaky.offsets == [10_000]
    assert files(tmp_path / "out") == files(made / "a")


def _give_up(seconds: float) -> None:
    raise LinkLost("the user went home")


def test_a_link_that_moves_nothing_is_given_up(entry: Entry, link: Link, tmp_path: Path) -> None:
    waits: list[float] = []
    with pytest.raises(LinkLost):
        fetch_served(Flaky(link, 0, 99), want(entry, tmp_path / "out"), waits.append)
    assert len(waits) == 7
    assert all(wait <= 30 for wait in waits)


def test_what_lies_there_of_another_fetch_is_not_believed(
    entry: Entry, link: Link, made: Path, tmp_path: Path
) -> None:  # fmt: skip
    part = tmp_path / "out.part"
    part.mkdir()
    (part / WEIGHTS).write_bytes(b"of another")
    (part / PASSPORT).write_bytes(b"{}")
    (part / "surplus").write_bytes(b"of another")
    fetch_served(link, want(entry, tmp_path / "out"))
    assert files(tmp_path / "out") == files(made / "a")


def test_bytes_that_a_disk_damaged_are_refused(
    entry: Entry, registry: Path, link: Link, tmp_path: Path
) -> None:
    path = artefact_path(registry, entry.digest) / WEIGHTS
    path.write_bytes(bytes(path.stat().st_size))
    for _ in range(2):
        with pytest.raises(LinkRefused, match="the registry is damaged"):
            fetch_served(link, want(entry, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_revoked_artefact_is_refused_at_once(
    entry: Entry, registry: Path, link: Link, tmp_path: Path
) -> None:
    revoke(registry, {entry.digest: None}, "its owner withdrew")
    with pytest.raises(RegistryError, match="its owner withdrew"):
        fetch_served(link, want(entry, tmp_path / "out"))
    refused(
        "unknown-artefact", lambda: b"".join(link.pull(bytes.fromhex(entry.digest), PASSPORT, 0))
    )


def test_files_that_a_crash_left_of_a_revoked_artefact_are_not_served(
    entry: Entry, registry: Path, link: Link, tmp_path: Path
) -> None:
    """The index is replaced first, and the files go then."""
    place = artefact_path(registry, entry.digest)
    shutil.copytree(place, tmp_path / "left")
    revoke(registry, {entry.digest: None}, "its owner withdrew")
    shutil.copytree(tmp_path / "left", place)
    artefact = bytes.fromhex(entry.digest)
    refused("unknown-artefact", lambda: b"".join(link.pull(artefact, WEIGHTS, 0)))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../../registry.json", "/etc/passwd", "../../../identity.key", "a\0b"]
)
def test_a_path_is_no_name(entry: Entry, link: Link, name: str) -> None:
    artefact = bytes.fromhex(entry.digest)
    refused("unknown-artefact", lambda: b"".join(link.pull(artefact, name, 0)))


@pytest.mark.parametrize("artefact", [b"", bytes(32), b"../../runs"])
def test_an_artefact_that_is_not_there(entry: Entry, link: Link, artefact: bytes) -> None:
    refused("unknown-artefact", lambda: b"".join(link.pull(artefact, PASSPORT, 0)))


def test_weights_go_to_the_roles_that_the_settings_name(
    service: RunningService, entry: Entry, tmp_path: Path
) -> None:
    artefact = bytes.fromhex(entry.digest)
    for role, may in (("auditor", False), ("operator", True), ("node", True)):
        joined_as(service, tmp_path / role, f"a-{role}", role)
        with dialled(tmp_path / role) as link:
            assert entry in served_index(link).artefacts
            assert b"".join(link.pull(artefact, PASSPORT, 0))
            if may:
                assert b"".join(link.pull(artefact, WEIGHTS, 0))
            else:
                refused("wrong-role", lambda at=link: b"".join(at.pull(artefact, WEIGHTS, 0)))


def test_a_federation_may_keep_weights_from_nodes(
    service_home: ServiceHome, entry: Entry, tmp_path: Path
) -> None:
    running = RunningService(with_settings(service_home, artefact_roles=("operator",)))
    joined_as(running, tmp_path / "node", "clinic", "node")
    with dialled(tmp_path / "node") as link:
        artefact = bytes.fromhex(entry.digest)
        refused("wrong-role", lambda: b"".join(link.pull(artefact, WEIGHTS, 0)))
    running.stop()


def test_a_damaged_registry_says_no_path(registry: Path, link: Link) -> None:
    (registry / "registry.json").write_text("{")
    with pytest.raises(LinkRefused, match="damaged") as refusal:
        served_index(link)
    assert refusal.value.code == "bad-registry"
    assert str(registry) not in str(refusal.value)


def test_a_certificate_that_is_due_is_renewed_first(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = MembershipFile(node).load().certificate
    with dialled(node) as link:
        served_index(link)
    assert MembershipFile(node).load().certificate == before
    monkeypatch.setattr(client.membership, "_RENEW_AFTER", -1.0)
    with dialled(node) as link:
        served_index(link)
    assert MembershipFile(node).load().certificate != before


def test_a_revoked_member_is_told_in_a_sentence(service: RunningService, node: Path) -> None:
    service.home.registry.revoke("clinic")
    with pytest.raises(NodeError, match="Ask the operator"), dialled(node) as link:
        served_index(link)


def test_a_lying_coordinator_writes_nowhere_else(
    entry: Entry, link: Link, made: Path, tmp_path: Path
) -> None:  # fmt: skip
    said = files(made / "a")
    passport = json.loads(said[PASSPORT])
    passport["files"]["../outside"] = "0" * 64
    said |= {PASSPORT: json.dumps(passport).encode(), "../outside": b"x"}
    index = _index_of(entry, said[PASSPORT])
    with pytest.raises(LinkRefused, match="plain file's name"):
        fetch_served(Lying(index, said), Fetch("", tmp_path / "out", lambda folder: None))
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "out").exists()


def test_a_lying_coordinator_fills_no_disk(
    entry: Entry, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr("client.artefacts._LARGEST_PAPER", 100_000)
    said = files(made / "a")
    said[WEIGHTS] += bytes(entry.file_bytes + 100_000)
    index = _index_of(entry, said[PASSPORT])
    with pytest.raises(LinkRefused, match="bytes at most"):
        fetch_served(Lying(index, said), Fetch("", tmp_path / "out", lambda folder: None))


def _index_of(entry: Entry, passport: bytes) -> bytes:
    digest = hashlib.sha256(passport).hexdigest()
    said = entry.model_copy(update={"digest": digest}).model_dump()
    versions = [{"digest": entry.version, "name": "parent", "because": "exported from"}]
    return json.dumps({"versions": versions, "artefacts": [said]}).encode()
