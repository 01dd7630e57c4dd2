"""Messages and answers: kept once, durably, and never for another node."""

import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, select, text

from coordinator.service.blobs import BlobError, Blobs
from coordinator.service.database import REPLIES
from coordinator.service.home import ServiceHome
from coordinator.service.mailbox import Mailbox
from coordinator.service.posts import Post, Question
from coordinator.service.stores import CHUNK_BYTES
from privacy.payloads import payload_digest
from tests.service.postgresql import on_both

PAYLOAD = bytes(range(256)) * 9_000  # more than two chunks
OTHER = ("EpochRequest", b"", b"a payload of its own")


@pytest.fixture
def mailbox(service_home: ServiceHome) -> Mailbox:
    return service_home.mailbox


def answer_to(message: str, address: int = 1, payload: bytes = b"") -> Post:
    digest = payload_digest(payload) if payload else b""
    return Post(message, address, "", "Done", b"body", digest, len(payload))


def upload(mailbox: Mailbox, message: str, payload: bytes) -> None:
    incoming = mailbox.blobs.receive(message, 0, len(payload))
    incoming.write(payload)
    incoming.close()


@on_both
def test_a_message_waits_until_it_is_answered_once(mailbox: Mailbox) -> None:
    first = mailbox.post("r", 1, "query.keys", ("EpochRequest", b"a", b""))
    second = mailbox.post("r", 1, "train.upload", ("UploadRequest", b"b", PAYLOAD))
    mailbox.post("r", 2, "query.keys", ("EpochRequest", b"c", b""))
    waiting = mailbox.waiting(1)
    assert [post.message for post in waiting] == [first, second]
    assert mailbox.blobs.read(waiting[1].payload_digest) == PAYLOAD
    assert mailbox.answer(answer_to(first))
    assert not mailbox.answer(answer_to(first))
    assert mailbox.waiting(1) == waiting[1:]
    found = mailbox.first_answer([first, second])
    assert found is not None
    assert (found[0].message, found[0].address, found[0].body) == (first, 1, b"body")
    assert mailbox.first_answer([second]) is None


@on_both
def test_an_answer_beside_the_end_of_its_phase_leaves_nothing(service_home: ServiceHome) -> None:
    """The phase's answers are gone, and its messages are about to go."""
    mailbox, engine = service_home.mailbox, service_home.engine
    message = mailbox.post("r", 1, "train.upload", ("UploadRequest", b"", PAYLOAD))
    kept: list[bool] = []
    answering = threading.Thread(target=lambda: kept.append(mailbox.answer(answer_to(message))))

    def answer_now(connection: object, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("DELETE FROM messages"):
            answering.start()
            answering.join(1.0)  # it goes through at once, or waits for the end of the phase

    event.listen(engine, "before_cursor_execute", answer_now)
    mailbox.clear("r")
    answering.join(20)
    assert kept == [False]
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(REPLIES)).scalar_one() == 0


@on_both
def test_what_is_asked_next_takes_the_place_of_what_was(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one transaction; a payload that is asked with again stays on the disk, another goes."""
    model = ("UploadRequest", b"", PAYLOAD)
    first = mailbox.ask("r", [Question(1, "train.upload", model), Question(2, "query.keys", OTHER)])
    upload(mailbox, first[1], b"half")
    other = mailbox.post("another", 1, "query.keys", ("EpochRequest", b"", b""))
    delete, deleted = mailbox.blobs.delete, list[bytes]()
    monkeypatch.setattr(mailbox.blobs, "delete", lambda each: (deleted.append(each), delete(each)))
    (second,) = mailbox.ask("r", [Question(1, "train.upload", model)])
    mailbox.tidy()
    assert deleted == [payload_digest(OTHER[2])]  # the model is there all the while
    assert [post.message for post in mailbox.waiting(1)] == [other, second]
    assert mailbox.waiting(2) == []
    assert not mailbox.answer(answer_to(first[0]))
    assert mailbox.blobs.names() == [payload_digest(PAYLOAD).hex()]
    assert mailbox.ask("r", []) == []
    assert [post.message for post in mailbox.waiting(1)] == [other]
    mailbox.tidy()
    assert mailbox.blobs.names() == []


@on_both
def test_nobody_answers_or_fetches_for_another(mailbox: Mailbox) -> None:
    message = mailbox.post("r", 1, "train.upload", ("UploadRequest", b"", PAYLOAD))
    digest = payload_digest(PAYLOAD)
    assert mailbox.fetchable(1, [bytes(32), digest]) == digest
    assert mailbox.fetchable(2, [bytes(32), digest]) is None
    assert not mailbox.is_waiting(message, 2)
    assert not mailbox.answer(answer_to(message, address=2))
    assert mailbox.is_waiting(message, 1)


@on_both
def test_what_was_acknowledged_is_there_after_a_restart(service_home: ServiceHome) -> None:
    message = service_home.mailbox.post("r", 1, "train.upload", ("UploadRequest", b"", b""))
    upload(service_home.mailbox, message, PAYLOAD)
    assert service_home.mailbox.answer(answer_to(message, payload=PAYLOAD))
    service_home.close()
    again = ServiceHome.open(service_home.path)
    found = again.mailbox.first_answer([message])
    assert found is not None
    assert found[1] == PAYLOAD
    again.close()


def test_an_upload_goes_on_where_the_disk_has_it(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    incoming = blobs.receive("a1", 0, len(PAYLOAD))
    incoming.write(PAYLOAD[:CHUNK_BYTES])
    incoming.close()
    assert blobs.progress("a1") == CHUNK_BYTES
    with pytest.raises(BlobError, match="from byte"):
        blobs.receive("a1", CHUNK_BYTES + 1, len(PAYLOAD))
    rest = Blobs(tmp_path).receive("a1", CHUNK_BYTES, len(PAYLOAD))
    rest.write(PAYLOAD[CHUNK_BYTES:])
    assert rest.is_whole
    with pytest.raises(BlobError, match="no more bytes"):
        rest.write(b"x")
    rest.close()
    digest = payload_digest(PAYLOAD)
    blobs.keep("a1", digest)
    assert blobs.read(digest) == PAYLOAD
    blobs.keep("a1", digest)  # after a crash between the rename and the acknowledgement


@on_both
def test_other_bytes_than_named_are_not_kept(mailbox: Mailbox) -> None:
    message = mailbox.post("r", 1, "train.upload", ("UploadRequest", b"", b""))
    upload(mailbox, message, PAYLOAD[:-1] + b"\0")
    with pytest.raises(BlobError, match="head names"):
        mailbox.answer(answer_to(message, payload=PAYLOAD))
    assert mailbox.blobs.progress(message) == 0
    assert mailbox.is_waiting(message, 1)


def test_a_damaged_payload_is_not_read(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    digest = blobs.put(PAYLOAD)
    path = tmp_path / digest.hex()
    path.write_bytes(PAYLOAD[:-1] + b"\0")
    with pytest.raises(BlobError, match="another"):
        blobs.read(digest)


@on_both
def test_clearing_a_run_leaves_the_other_alone(mailbox: Mailbox) -> None:
    """Two runs at once, with one payload in common."""
    one = mailbox.post("one", 1, "train.upload", ("UploadRequest", b"", PAYLOAD))
    two = mailbox.post("two", 1, "train.upload", ("UploadRequest", b"", PAYLOAD))
    own = mailbox.post("one", 2, "train.upload", ("UploadRequest", b"", b"alone"))
    upload(mailbox, own, b"reply")
    mailbox.answer(answer_to(own, 2, b"reply"))
    mailbox.clear("one")
    assert not mailbox.is_waiting(one, 1)
    assert [post.message for post in mailbox.waiting(1)] == [two]
    assert mailbox.blobs.read(payload_digest(PAYLOAD)) == PAYLOAD
    assert mailbox.first_answer([own]) is None
    for gone in (b"alone", b"reply"):
        assert mailbox.blobs.size(payload_digest(gone)) is None
    mailbox.clear("two")
    assert mailbox.blobs.size(payload_digest(PAYLOAD)) is None


@on_both
def test_what_a_phase_left_is_deleted_once_there_is_time(mailbox: Mailbox) -> None:
    """And what is asked with again meanwhile stays."""
    kept = mailbox.blobs.size
    models = [payload_digest(payload) for payload in (PAYLOAD, b"next")]
    asked = [Question(1, "train.upload", ("U", b"", PAYLOAD))]
    (message,) = mailbox.ask("r", asked)
    upload(mailbox, message, b"reply")
    assert mailbox.answer(answer_to(message, payload=b"reply"))
    mailbox.ask("r", [Question(1, "query.unmask", ("U", b"", b""))])
    assert [kept(each) for each in models] == [len(PAYLOAD), None]
    mailbox.ask("r", [Question(1, "train.upload", ("U", b"", b"next"), models[1])])
    mailbox.tidy()
    assert [kept(each) for each in models] == [None, len(b"next")]
    assert kept(payload_digest(b"reply")) is None
    mailbox.ask("r", [Question(1, "query.unmask", ("U", b"", b""))])
    mailbox.ask("r", [Question(1, "train.upload", ("U", b"", b"next"))])
    mailbox.tidy()
    assert kept(models[1]) == len(b"next")
    mailbox.clear("r", mailbox.blobs.put(PAYLOAD))
    assert [kept(each) for each in models] == [None, None]


def test_phases_that_are_never_long_leave_a_few_payloads(mailbox: Mailbox) -> None:
    for number in range(200):
        mailbox.ask("r", [Question(1, "train.upload", ("U", b"", b"model %d" % number))])
        assert len(mailbox.blobs.names()) <= 65


@on_both
def test_a_payload_that_another_run_asks_with_while_it_is_deleted(
    service_home: ServiceHome,
) -> None:
    """Between the rows' end and the file's: the file that is there is about to go."""
    mailbox, model = service_home.mailbox, ("UploadRequest", b"", PAYLOAD)
    other = ServiceHome.open(service_home.path)
    mailbox.post("one", 1, "train.upload", model)
    asked: list[str] = []

    def ask_now(*_: object) -> None:
        if not asked:
            asked.append("once")
            asked.append(other.mailbox.post("two", 1, "train.upload", model))

    event.listen(service_home.engine, "checkin", ask_now)  # the first transaction is through
    mailbox.clear("one")
    assert [post.message for post in mailbox.waiting(1)] == asked[1:]
    assert mailbox.blobs.read(payload_digest(PAYLOAD)) == PAYLOAD
    other.close()


@on_both
def test_a_payload_that_is_asked_with_as_its_deletion_begins(
    service_home: ServiceHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody named a moment ago is deleted, and whoever names it now puts it again."""
    mailbox, model = service_home.mailbox, ("UploadRequest", b"", PAYLOAD)
    other = ServiceHome.open(service_home.path)
    mailbox.post("one", 1, "train.upload", model)
    asking = threading.Thread(target=other.mailbox.post, args=("two", 1, "train.upload", model))
    delete = mailbox.blobs.delete

    def delete_late(digest: bytes) -> None:
        asking.start()
        asking.join(1.0)  # it found the file, and waits to be told that its row is there
        delete(digest)

    monkeypatch.setattr(mailbox.blobs, "delete", delete_late)
    mailbox.clear("one")
    asking.join(20)
    assert len(mailbox.waiting(1)) == 1
    assert mailbox.blobs.read(payload_digest(PAYLOAD)) == PAYLOAD
    other.close()


@on_both
def test_equal_answers_to_two_runs_do_not_hurt_one_another(mailbox: Mailbox) -> None:
    """As a member could send that means ill."""
    one = mailbox.post("one", 1, "train.upload", ("UploadRequest", b"", b""))
    two = mailbox.post("two", 1, "train.upload", ("UploadRequest", b"", b""))
    for message in (one, two):
        upload(mailbox, message, b"same")
        assert mailbox.answer(answer_to(message, payload=b"same"))
    mailbox.clear("one")
    found = mailbox.first_answer([two])
    assert found is not None
    assert found[1] == b"same"


@on_both
def test_an_answer_whose_payload_goes_with_another_is_not_kept(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file bears the other's name, and goes before its row is there."""
    one = mailbox.post("one", 1, "train.upload", ("UploadRequest", b"", b""))
    two = mailbox.post("two", 1, "train.upload", ("UploadRequest", b"", b""))
    upload(mailbox, one, b"same")
    assert mailbox.answer(answer_to(one, payload=b"same"))
    upload(mailbox, two, b"same")
    keep = mailbox.blobs.keep

    def clear_after(*args: Any) -> None:
        keep(*args)
        mailbox.clear("one")

    monkeypatch.setattr(mailbox.blobs, "keep", clear_after)
    with pytest.raises(BlobError, match="no other answer"):
        mailbox.answer(answer_to(two, payload=b"same"))
    assert mailbox.is_waiting(two, 1)
    assert mailbox.first_answer([two]) is None


def test_acknowledged_rows_survive_a_loss_of_power(service_home: ServiceHome) -> None:
    """In WAL mode only FULL (2) flushes before a commit returns."""
    with service_home.engine.connect() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
