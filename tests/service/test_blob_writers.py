"""Writers of one payload or one upload that meet: nobody alters what another was told is kept."""

import errno
import fcntl
import os
import queue
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from client.arriving import Arriving
from client.transport import CHUNK_BYTES
from coordinator.service import blobs as blobs_module
from coordinator.service import stores
from coordinator.service.blobs import BlobError, Blobs, Incoming, UploadBusyError
from coordinator.service.posts import Question
from privacy.ledger import files, uncached
from privacy.ledger.files import DiskError
from privacy.payloads import is_payload_file, payload_digest
from protos.arion.v1 import service_pb2 as pb
from tests.service.members import enrol
from tests.service.running import RunningService

MODEL = random.Random(4).randbytes(3 << 20)
DIGEST = payload_digest(MODEL)


def test_two_that_put_the_same_do_not_meet(tmp_path: Path) -> None:
    for _ in range(20):
        both, errors = threading.Barrier(2), list[Exception]()

        def put(both: threading.Barrier = both, errors: list[Exception] = errors) -> None:
            both.wait()
            try:
                Blobs(tmp_path).put(MODEL, DIGEST)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=put) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert Blobs(tmp_path).read(DIGEST) == MODEL
        Blobs(tmp_path).delete(DIGEST)


def test_one_that_is_killed_leaves_what_another_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other had flushed its bytes and was about to name them."""
    original, begun = os.fsync, list[int]()

    def fsync(descriptor: int) -> None:
        original(descriptor)
        if not begun:
            begun.append(os.fork())
            if not begun[0]:
                files.write_all = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
                Blobs(tmp_path).put(MODEL, DIGEST)
            os.waitpid(begun[0], 0)

    monkeypatch.setattr(files.os, "fsync", fsync)
    Blobs(tmp_path).put(MODEL, DIGEST)
    monkeypatch.undo()
    assert begun
    assert Blobs(tmp_path).read(DIGEST) == MODEL


def test_a_payload_that_was_cut_short_is_put_again(tmp_path: Path) -> None:
    Blobs(tmp_path).put(MODEL)
    (tmp_path / DIGEST.hex()).write_bytes(MODEL[:-1])
    Blobs(tmp_path).put(MODEL)
    assert Blobs(tmp_path).read(DIGEST) == MODEL


@contextmanager
def calling(call: Callable[[Iterator[Any]], Any]) -> Iterator["queue.Queue[Any]"]:
    """A call in a thread whose parts are what is put; None ends it, whatever it answers."""
    parts: queue.Queue[Any] = queue.Queue()

    def act() -> None:
        with suppress(grpc.RpcError):
            call(iter(parts.get, None))

    thread = threading.Thread(target=act)
    thread.start()
    yield parts
    parts.put(None)
    thread.join(20)


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("act", ["receive", "keep"])
def test_an_upload_that_went_on_elsewhere_takes_no_more(tmp_path: Path, act: str) -> None:
    blobs = Blobs(tmp_path)
    older = blobs.receive("a1", 0, len(MODEL))
    older.write(MODEL[:-1])
    if act == "receive":
        newer = blobs.receive("a1", len(MODEL) - 1, len(MODEL))
        with pytest.raises(BlobError, match="newest connection"):
            older.write(b"x")
        newer.write(MODEL[-1:])
        older.close()
        newer.close()
        blobs.keep("a1", DIGEST)
    else:
        with pytest.raises(BlobError, match="head names"):
            blobs.keep("a1", DIGEST)  # a byte is missing
        with pytest.raises(BlobError, match="newest connection"):
            older.write(MODEL[-1:])
        older.close()
        assert blobs.progress("a1") == 0
        blobs.put(MODEL)
    assert blobs.read(DIGEST) == MODEL
    assert list(tmp_path.glob("parts/*")) == []


def test_an_upload_that_is_being_checked_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs, tried = Blobs(tmp_path), list[str]()
    with closing(blobs.receive("a1", 0, len(MODEL))) as whole:
        whole.write(MODEL)
    del whole

    def checked(path: Path, digest: bytes) -> bool:
        for act in (lambda: blobs.receive("a1", 7, len(MODEL)), lambda: blobs.keep("a1", digest)):
            with pytest.raises(UploadBusyError):
                act()
            tried.append(path.name)
        return is_payload_file(path, digest)

    monkeypatch.setattr("coordinator.service.blobs.is_payload_file", checked)
    blobs.keep("a1", DIGEST)
    assert tried == ["a1", "a1"]
    assert blobs.read(DIGEST) == MODEL
    blobs.receive("a1", 0, 1).close()  # and no longer


def came(blobs: Blobs, data: bytes, offset: int = 0, step: int = CHUNK_BYTES) -> Incoming:
    """The writer of an upload's rest, which is whole then."""
    incoming = blobs.receive("a1", offset, len(MODEL))
    for start in range(offset, len(data), step):
        incoming.write(data[start : start + step])
    incoming.close()
    return incoming


@pytest.mark.parametrize("offset", [0, 7])
def test_what_was_hashed_as_it_came_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    """Of an upload that went on, the beginning was not."""
    read = list[Path]()

    def checked(path: Path, digest: bytes) -> bool:
        read.append(path)
        return is_payload_file(path, digest)

    monkeypatch.setattr("coordinator.service.blobs.is_payload_file", checked)
    blobs = Blobs(tmp_path)
    held = [came(blobs, MODEL[:offset], 0)] if offset else []
    held.append(came(blobs, MODEL, offset))
    blobs.keep("a1", DIGEST)
    assert (read == []) == (offset == 0)
    assert blobs.read(DIGEST) == MODEL


def test_a_chunk_that_came_in_part_makes_nothing_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what came before it would name the file."""
    blobs, written = Blobs(tmp_path), list[int]()

    def full(descriptor: int, parts: tuple[bytes]) -> None:
        written.append(len(parts))
        uncached.write_uncached(descriptor, parts if not written[1:] else (parts[0][:9],))
        if written[1:]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("coordinator.service.blobs.write_uncached", full)
    incoming = blobs.receive("a1", 0, 2 * len(MODEL))
    incoming.write(MODEL)
    with pytest.raises(DiskError):
        incoming.write(MODEL)
    incoming.close()
    assert blobs.progress("a1") == len(MODEL) + 9
    assert incoming.digest == b""
    with pytest.raises(BlobError, match="head names"):
        blobs.keep("a1", DIGEST)


@pytest.mark.parametrize("step", [4096, 5000, CHUNK_BYTES, CHUNK_BYTES + 1, len(MODEL)])
@pytest.mark.parametrize("offset", [0, 4096, 7777])
def test_a_large_upload_comes_whole_in_any_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, offset: int
) -> None:
    """Large ones pass the disk's cache, which takes whole blocks only."""
    direct, write = list[int](), os.write

    def noted(descriptor: int, data: memoryview) -> int:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        direct.append(len(data) if flags & os.O_DIRECT else 0)
        return write(descriptor, data)

    for module in (blobs_module, stores):
        monkeypatch.setattr(module, "LARGE_BYTES", len(MODEL) - 1)
    monkeypatch.setattr(uncached.os, "write", noted)
    blobs = Blobs(tmp_path)
    held = [came(blobs, MODEL[:offset]), came(blobs, MODEL, offset, step)]
    assert [each.digest for each in held] == [b"", b"" if offset else DIGEST]
    blobs.keep("a1", DIGEST)
    assert blobs.read(DIGEST) == MODEL
    assert (tmp_path / DIGEST.hex()).read_bytes() == MODEL
    probe = uncached.open_uncached(tmp_path / "probe", os.O_WRONLY | os.O_CREAT)
    if fcntl.fcntl(probe, fcntl.F_GETFL) & os.O_DIRECT:
        whole = step % 4096 == 0 and offset % 4096 == 0
        assert (sum(direct) >= len(MODEL) - offset) == whole
    os.close(probe)


def test_the_rest_of_an_upload_is_not_taken_for_all_of_it(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    with closing(blobs.receive("a1", 0, 7 + len(MODEL))) as first:
        first.write(b"in front")
    with closing(blobs.receive("a1", 7, 7 + len(MODEL))) as rest:
        rest.write(MODEL)
    assert rest.is_whole
    with pytest.raises(BlobError, match="head names"):
        blobs.keep("a1", DIGEST)


def test_an_answer_is_hashed_as_it_comes(
    service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = enrol(service, tmp_path / "a")
    (member,) = service.home.registry.members()
    (message,) = service.home.mailbox.ask("r", [Question(member.address, "a", ("U", b"", b""))])
    monkeypatch.setattr("coordinator.service.blobs.is_payload_file", lambda *_: False)
    assert link.answer(message, "Done", b"", MODEL)
    assert service.home.mailbox.blobs.read(DIGEST) == MODEL
    link.close()


@pytest.mark.parametrize("is_held", [True, False])
def test_a_digest_is_that_of_what_came_last(tmp_path: Path, *, is_held: bool) -> None:
    blobs = Blobs(tmp_path)
    first = came(blobs, MODEL)
    second = came(blobs, b"x" + MODEL[1:])
    if not is_held:
        del second
    with pytest.raises(BlobError, match="head names"):
        blobs.keep("a1", DIGEST)
    assert first.digest == DIGEST
    assert blobs.size(DIGEST) is None


def test_what_is_not_whole_or_not_flushed_has_no_digest(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    assert came(blobs, MODEL[:-1]).digest == b""
    open_yet = blobs.receive("a1", 0, len(MODEL))
    open_yet.write(MODEL)
    assert open_yet.digest == b""
    open_yet.close()
    assert open_yet.digest == DIGEST


def test_two_answers_at_once_alter_no_payload_of_others(
    service: RunningService, tmp_path: Path
) -> None:
    """A member answers with the model's own bytes, and once it was kept goes on in another call."""
    link, honest = enrol(service, tmp_path / "a"), enrol(service, tmp_path / "b", "south")
    members = {member.name: member.address for member in service.home.registry.members()}
    mailbox, parcel = service.home.mailbox, ("U", b"", MODEL)
    asked = [Question(members[name], "a", parcel, DIGEST) for name in ("north", "south")]
    message, _ = mailbox.ask("r", asked)

    def head(offset: int) -> Any:
        return pb.AnswerPart(
            head=pb.AnswerHead(
                message=message, kind="U", payload_digest=DIGEST, payload_bytes=len(MODEL),
                offset=offset,
            )
        )  # fmt: skip

    with calling(link._exchange.Answer) as first, calling(link._exchange.Answer) as second:
        first.put(head(0))
        for start in range(0, len(MODEL) - 1, CHUNK_BYTES):
            end = min(start + CHUNK_BYTES, len(MODEL) - 1)
            first.put(pb.AnswerPart(data=MODEL[start:end]))
        wait_until(lambda: mailbox.blobs.progress(message) == len(MODEL) - 1)
        second.put(head(len(MODEL) - 1))
        first.put(pb.AnswerPart(data=MODEL[-1:]))
        second.put(pb.AnswerPart(data=bytes([MODEL[-1] ^ 1])))
    assert honest.fetch(DIGEST, len(MODEL), Arriving()) == MODEL
    found = mailbox.first_answer([message])
    assert found is None or found[1] == MODEL
    link.close()
    honest.close()


def test_nobody_else_waits_for_an_older_connection_to_end(
    service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its flush may take as long as the disk likes."""
    link, other = enrol(service, tmp_path / "a"), enrol(service, tmp_path / "b", "south")
    (address,) = (m.address for m in service.home.registry.members() if m.name == "north")
    message = service.home.mailbox.post("r", address, "a", ("U", b"", b""))
    let_go, waiting, waited = threading.Event(), threading.Event(), list[bool]()
    original = Incoming.end

    def end(self: Incoming) -> None:
        waiting.set()
        waited.append(let_go.wait(10))
        original(self)

    monkeypatch.setattr(Incoming, "end", end)
    older = service.home.mailbox.blobs.receive(message, 0, 10)
    with calling(link._exchange.Answer) as newer:
        newer.put(
            pb.AnswerPart(
                head=pb.AnswerHead(
                    message=message, kind="U", payload_digest=bytes(32), payload_bytes=10
                )
            )
        )
        assert waiting.wait(10)
        assert other.is_member()
        assert waited == []
        let_go.set()
    older.close()
    link.close()
    other.close()
