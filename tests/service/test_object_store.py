"""Payloads in an object store: as in a folder, through a failing store, a backup and a restoration.

Stores that fsspec carries are tried on a folder (its `file` protocol); S3 itself against moto's
server, where moto and s3fs are installed.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import coordinator.service.stores
from client.arriving import Arriving
from client.transport import LinkLost
from coordinator.errors import RunError
from coordinator.service.archive import BackupError
from coordinator.service.backup import back_up
from coordinator.service.home import ServiceHome, ServiceSettings
from coordinator.service.restore import restore
from coordinator.service.stores import FolderStore, ObjectStore, Store
from privacy.payloads import payload_digest
from tests.service.members import enrol
from tests.service.running import RunningService
from tests.small_federation import FEDERATION

PAYLOAD = bytes(range(256)) * 9_000
NAME = payload_digest(PAYLOAD).hex()
PASSPHRASE = b"a long enough passphrase"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URL of a bucket on a server of this process."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    names = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        import s3fs  # noqa: PLC0415  (an extra)

        s3fs.S3FileSystem().mkdir("payloads")
        yield "s3://payloads"
    server.stop()


@pytest.fixture(params=["folder", "file", pytest.param("s3", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        return ObjectStore(request.getfixturevalue("s3") + "/" + os.urandom(4).hex())
    if request.param == "file":
        return ObjectStore(f"file://{tmp_path}/objects")
    return FolderStore(tmp_path)


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3")) + "/" + os.urandom(4).hex()
    return f"file://{tmp_path}/objects"


@pytest.fixture
def home(url: str, tmp_path: Path) -> Iterator[ServiceHome]:
    settings = ServiceSettings(
        federation=FEDERATION, hosts=("localhost",), port=0, enrolment_port=0, payloads=url
    )
    made = ServiceHome.create(tmp_path / "service", settings)
    yield made
    made.close()


@pytest.fixture
def service(home: ServiceHome) -> Iterator[RunningService]:
    running = RunningService(home)
    yield running
    running.stop()


def test_a_store_keeps_what_it_is_given(store: Store, tmp_path: Path) -> None:
    assert (store.size(NAME), store.names(), store.sizes()) == (None, [], {})
    with pytest.raises(FileNotFoundError):
        store.open(NAME).read()
    with pytest.raises(FileNotFoundError):
        store.copy(NAME, tmp_path / "copy")
    store.delete(NAME)  # nothing is there
    for _ in range(2):  # twice changes nothing
        store.write(NAME, PAYLOAD)
        assert (store.size(NAME), store.sizes()) == (len(PAYLOAD), {NAME: len(PAYLOAD)})
        with store.open(NAME) as file:
            file.seek(1000)
            assert file.read() == PAYLOAD[1000:]
    store.copy(NAME, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == PAYLOAD
    (tmp_path / "parts").mkdir()
    part = tmp_path / "parts" / "upload"
    part.write_bytes(b"other")
    store.take(part, "other")
    assert not part.exists()
    store.delete(NAME)
    assert (store.size(NAME), store.sizes()["other"]) == (None, 5)


def test_a_service_serves_and_keeps_payloads_there(
    service: RunningService, url: str, tmp_path: Path
) -> None:
    link, mailbox = enrol(service, tmp_path / "node"), service.home.mailbox
    (member,) = service.home.registry.members()
    message = mailbox.post("r", member.address, "train.upload", ("UploadRequest", b"", PAYLOAD))
    envelope = next(link.listen(30))
    assert link.fetch(envelope.payload_digest, envelope.payload_bytes, Arriving()) == PAYLOAD
    answered = PAYLOAD[::-1]
    assert link.answer(message, "Done", b"body", answered)
    assert not link.answer(message, "Done", b"body", answered)
    found = mailbox.first_answer([message])
    assert found is not None
    assert found[1] == answered
    assert set(ObjectStore(url).sizes()) == {NAME, payload_digest(answered).hex()}
    files = [path for path in (service.home.path / "blobs").rglob("*") if path.is_file()]
    assert files == []
    ObjectStore(url).write("f" * 64, b"of a crash")
    assert mailbox.sweep() == 1
    mailbox.clear("r")
    assert ObjectStore(url).sizes() == {}
    link.close()


@pytest.mark.parametrize("error", [RuntimeError("a secret of the store"), OSError("down")])
def test_a_store_that_fails_acknowledges_nothing(
    service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    link, mailbox = enrol(service, tmp_path / "node"), service.home.mailbox
    (member,) = service.home.registry.members()
    message = mailbox.post("r", member.address, "train.upload", ("UploadRequest", b"", b""))

    def fail(*_: Any, **__: Any) -> None:
        raise error

    files = mailbox.blobs._store._files  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(files, "put_file", fail)
        with pytest.raises(LinkLost) as lost:
            link.answer(message, "Done", b"body", PAYLOAD)
        assert "secret" not in str(lost.value)
    assert mailbox.first_answer([message]) is None
    assert link.answer(message, "Done", b"body", PAYLOAD)
    link.close()


def test_a_backup_holds_payloads_and_a_restoration_gives_them_a_store(
    home: ServiceHome, url: str, tmp_path: Path
) -> None:
    home.mailbox.post("r", 1, "train.upload", ("UploadRequest", b"body", PAYLOAD))
    back_up(home, tmp_path / "b.tar", PASSPHRASE)
    restore(tmp_path / "b.tar", tmp_path / "in-folder", PASSPHRASE, None)
    assert FolderStore(tmp_path / "in-folder" / "blobs").sizes() == {NAME: len(PAYLOAD)}
    with pytest.raises(BackupError, match="holds nothing"):  # the one that may be served
        restore(tmp_path / "b.tar", tmp_path / "again", PASSPHRASE, None, url)
    assert not (tmp_path / "again").exists()
    restore(tmp_path / "b.tar", tmp_path / "again", PASSPHRASE, None, url + "/second")
    assert ObjectStore(url + "/second").sizes() == {NAME: len(PAYLOAD)}
    again = ServiceHome.open(tmp_path / "again")
    (waiting,) = again.mailbox.waiting(1)
    assert again.mailbox.blobs.read(waiting.payload_digest) == PAYLOAD
    again.close()


def test_a_store_that_nobody_knows_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ServiceSettings(
        federation=FEDERATION, hosts=("localhost",), payloads="nosuch://user:secret@host/x"
    )
    with pytest.raises(RunError, match="payloads: Expected the URL") as refused:
        ServiceHome.create(tmp_path / "service", settings)
    assert "secret" not in str(refused.value)
    assert not (tmp_path / "service").exists()
    known = settings.model_copy(update={"payloads": f"file://{tmp_path}/objects"})
    ServiceHome.create(tmp_path / "service", known).close()
    missing = ImportError("Install s3fs to access S3")
    monkeypatch.setattr(coordinator.service.stores.fsspec.core, "url_to_fs", _raise(missing))
    with pytest.raises(RunError, match="Install s3fs"):
        ServiceHome.open(tmp_path / "service")


def _raise(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail
