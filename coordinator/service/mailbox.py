"""Messages that wait for nodes, and answers that wait for a run; each is kept once, durably.

A node may be told a message twice and answer twice: it answers with the same bytes, and the first
answer counts. A message that nobody waits for any more is over, and its answer is not kept.
"""

import secrets
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import IntegrityError

from coordinator.service.blobs import BlobError, Blobs
from coordinator.service.database import MESSAGES, REPLIES, alone, transaction
from coordinator.service.doors import SERVICE, Doors, run_door
from coordinator.service.posts import Post, Question, post_of

_LEFT_AT_MOST = 64
"""Payloads and uploads; of more, phases that are never long do not leave a run's all."""

_DELETED_AT_ONCE = 16
"""Others wait meanwhile, and an object store may be slow."""


class Mailbox:
    """The mailbox of one coordinator; many processes may use it at once.

    Args:
        engine: the database.
        blobs: payloads.
        doors: whom it knocks at when something was left for them.

    """

    def __init__(self, engine: Engine, blobs: Blobs, doors: Doors) -> None:
        self._engine, self.blobs, self.doors = engine, blobs, doors
        self._lost: tuple[list[bytes], list[str]] = [], []  # nobody waits for that

    def post(
        self,
        run: str,
        address: int,
        action: str,
        parcel: tuple[str, bytes, bytes],
        digest: bytes | None = None,
    ) -> str:
        """Leave a message for a node, beside what the run asked before.

        Args:
            run: whose message it is; `clear` takes what was left of a run.
            address, action, parcel, digest: as `Question`.

        Returns:
            The message's identifier.

        """
        (message,) = self._post(run, [Question(address, action, parcel, digest)], begins=False)
        return message

    def ask(self, run: str, questions: Sequence[Question]) -> list[str]:
        """Begin a phase of a run: what was asked before is over, and this is asked, at once.

        Payloads of what was asked before stay until `tidy`: a disk may be long about them.

        Returns:
            The messages' identifiers, in order.

        """
        return self._post(run, questions, begins=True)

    def _post(self, run: str, questions: Sequence[Question], *, begins: bool) -> list[str]:
        rows = [self._row(run, question) for question in questions]
        with alone(self._engine) as connection:
            if begins:
                self._forget(connection, run)
            if rows:
                connection.execute(MESSAGES.insert(), rows)
        for question, row in zip(questions, rows, strict=True):
            if row["payload_bytes"]:  # another run may have deleted it before it was named
                self.blobs.put(question.parcel[2], row["payload_digest"])
        self.doors.knock(SERVICE)
        if len(self._lost[0]) + len(self._lost[1]) > _LEFT_AT_MOST:
            self.tidy()
        return [str(row["id"]) for row in rows]

    def _row(self, run: str, question: Question) -> dict[str, Any]:
        kind, body, payload = question.parcel
        return {
            "id": secrets.token_hex(16),
            "run": run,
            "address": question.address,
            "action": question.action,
            "kind": kind,
            "body": body,
            "payload_digest": self.blobs.put(payload, question.digest) if payload else b"",
            "payload_bytes": len(payload),
            "state": "waiting",
            "posted": time.time(),
        }

    def waiting(self, address: int) -> list[Post]:
        """Return messages for a node that were not answered, oldest first."""
        query = (
            select(MESSAGES)
            .where(MESSAGES.c.address == address, MESSAGES.c.state == "waiting")
            .order_by(MESSAGES.c.posted, MESSAGES.c.id)
        )
        with transaction(self._engine, only_reads=True) as connection:
            return [post_of(row, row.id, row.action) for row in connection.execute(query)]

    def asked(self, run: str) -> tuple[str, int, list[int]] | None:
        """Return what a run asks nodes now, of how many, and who did not answer; None: nothing.

        Messages of an earlier phase are cleared when the next is posted.
        """
        query = select(MESSAGES.c.action, MESSAGES.c.address, MESSAGES.c.state).where(
            MESSAGES.c.run == run
        )
        with transaction(self._engine, only_reads=True) as connection:
            found = connection.execute(query.order_by(MESSAGES.c.posted)).all()
        if not found:
            return None
        return found[-1].action, len(found), [m.address for m in found if m.state == "waiting"]

    def newest(self) -> dict[int, tuple[int, float]]:
        """Return by node how many messages wait and when the newest came: what changes is news."""
        query = (
            select(MESSAGES.c.address, func.count(), func.max(MESSAGES.c.posted))
            .where(MESSAGES.c.state == "waiting")
            .group_by(MESSAGES.c.address)
        )
        with transaction(self._engine, only_reads=True) as connection:
            return {address: (count, at) for address, count, at in connection.execute(query)}

    def held_bytes(self, address: int) -> int:
        """Bytes of a node's answers on the disk: those kept, and those that have begun."""
        answers = (
            select(func.coalesce(func.sum(REPLIES.c.payload_bytes), 0))
            .join(MESSAGES, MESSAGES.c.id == REPLIES.c.message)
            .where(MESSAGES.c.address == address)
        )
        begun = select(MESSAGES.c.id).where(
            MESSAGES.c.address == address, MESSAGES.c.state == "waiting"
        )
        with transaction(self._engine, only_reads=True) as connection:
            kept = int(connection.execute(answers).scalar_one())
            uploads = connection.execute(begun).scalars().all()
        return kept + sum(self.blobs.progress(upload) for upload in uploads)

    def sweep(self) -> int:
        """Delete files that no row names, as a crash between the two leaves; return how many.

        A message that a run posts meanwhile puts its payload again.
        """
        columns = (MESSAGES.c.payload_digest, REPLIES.c.payload_digest)
        files = self.blobs.names()
        with alone(self._engine) as connection:
            uploads = set(connection.execute(select(MESSAGES.c.id)).scalars())
            named = {
                bytes(digest).hex()
                for column in columns
                for digest in connection.execute(select(column)).scalars()
            }
            lost = [name for name in files if name not in named | uploads]
            for name in lost:
                self.blobs.discard(name)
        return len(lost)

    def is_waiting(self, message: str, address: int) -> bool:
        """Tell whether a node's answer to a message is still waited for."""
        with transaction(self._engine, only_reads=True) as connection:
            row = connection.execute(
                select(MESSAGES.c.state).where(
                    MESSAGES.c.id == message, MESSAGES.c.address == address
                )
            ).one_or_none()
        return row is not None and row.state == "waiting"

    def fetchable(self, address: int, digests: Sequence[bytes]) -> bytes | None:
        """Return which of these payloads belongs to a message for this node, if one does."""
        query = select(MESSAGES.c.payload_digest).where(
            MESSAGES.c.address == address,
            MESSAGES.c.payload_digest.in_(digests),
            MESSAGES.c.state == "waiting",
        )
        with transaction(self._engine, only_reads=True) as connection:
            found: bytes | None = connection.execute(query.limit(1)).scalar()
        return found

    def named(self, digests: Sequence[bytes]) -> set[bytes]:
        """Return which of these payloads a message or an answer names."""
        with transaction(self._engine, only_reads=True) as connection:
            return _named(connection, digests)

    def answer(self, answer: Post) -> bool:
        """Keep a node's answer; False where it is over, or was answered before.

        Its payload's bytes must be on the disk: `Blobs.receive`.

        Raises:
            BlobError: the payload is not the one that the answer names, or it was deleted with
                another answer that had the same one.

        """
        if answer.payload_bytes:
            self.blobs.keep(answer.message, answer.payload_digest)
        with alone(self._engine) as connection:
            if answer.payload_bytes and self.blobs.size(answer.payload_digest) is None:
                raise BlobError("Expected a payload that no other answer has, got one that had.")
            run = connection.execute(
                MESSAGES.update()
                .where(
                    MESSAGES.c.id == answer.message,
                    MESSAGES.c.address == answer.address,
                    MESSAGES.c.state == "waiting",
                )
                .values(state="answered")
                .returning(MESSAGES.c.run)
            ).scalar()
            if run is None:
                return False
            try:
                connection.execute(
                    REPLIES.insert().values(
                        message=answer.message,
                        kind=answer.kind,
                        body=answer.body,
                        payload_digest=answer.payload_digest,
                        payload_bytes=answer.payload_bytes,
                    )
                )
            except IntegrityError as error:
                raise BlobError("Expected one answer to a message, got another.") from error
        self.doors.knock(run_door(run))
        return True

    def first_answer(self, messages: Sequence[str]) -> tuple[Post, bytes] | None:
        """Return one answer to any of these messages with its payload, or None."""
        query = (
            select(REPLIES, MESSAGES.c.address)
            .join(MESSAGES, MESSAGES.c.id == REPLIES.c.message)
            .where(REPLIES.c.message.in_(messages))
            .limit(1)
        )
        with transaction(self._engine, only_reads=True) as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        payload = self.blobs.read(row.payload_digest) if row.payload_bytes else b""
        return post_of(row, row.message), payload

    def clear(self, run: str, *payloads: bytes) -> None:
        """Forget all messages of a run and their answers: who answers now is told it is over.

        Args:
            run: whose.
            payloads: digests of more that go with them, if nothing names them.

        """
        with alone(self._engine) as connection:
            self._forget(connection, run)
        self._lost[0].extend(payloads)
        self.tidy()

    def _forget(self, connection: Connection, run: str) -> None:
        """Delete a run's rows, and keep in mind which payloads and uploads `tidy` has to delete."""
        digests, uploads = _forget(connection, run)
        self._lost[0].extend(digests)
        self._lost[1].extend(uploads)

    def tidy(self) -> None:
        """Delete what was left by phases that are over; a crash before leaves it to `sweep`."""
        lost, self._lost = self._lost, ([], [])
        self._delete(*lost)

    def _delete(self, digests: Sequence[bytes], uploads: Sequence[str]) -> None:
        """Delete payloads, but those that were named since, or by another run; and uploads."""
        for start in range(0, len(digests), _DELETED_AT_ONCE):
            some = digests[start : start + _DELETED_AT_ONCE]
            with alone(self._engine) as connection:
                for digest in set(some) - _named(connection, some):
                    self.blobs.delete(digest)
        for upload in uploads:
            self.blobs.forget(upload)


def _forget(connection: Connection, run: str) -> tuple[list[bytes], list[str]]:
    """Delete a run's rows; return digests of the payloads that they named, and their uploads."""
    of_run = select(MESSAGES.c.id, MESSAGES.c.payload_digest).where(MESSAGES.c.run == run)
    questions = connection.execute(of_run).all()
    uploads = [row.id for row in questions]
    answers = connection.execute(
        select(REPLIES.c.payload_digest).where(REPLIES.c.message.in_(uploads))
    ).scalars()
    asked = [row.payload_digest for row in questions]
    payloads = {digest for digest in (*answers, *asked) if digest}
    connection.execute(REPLIES.delete().where(REPLIES.c.message.in_(uploads)))
    connection.execute(MESSAGES.delete().where(MESSAGES.c.id.in_(uploads)))
    return sorted(payloads), uploads


def _named(connection: Connection, digests: Sequence[bytes]) -> set[bytes]:
    """Return which of these payloads a message or an answer names."""
    columns = (MESSAGES.c.payload_digest, REPLIES.c.payload_digest)
    return {
        digest
        for column in columns
        for digest in connection.execute(select(column).where(column.in_(digests))).scalars()
    }
