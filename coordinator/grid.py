"""A Flower Grid over the service's mailbox: the ServerApp of every runtime, nodes far away.

A run is a process of its own, which shares the database with the service. Messages of an earlier
phase are cleared when the next one is pushed: who is late is told that it is over.
"""

import time
from collections.abc import Collection, Iterable, Iterator

from flwr.app import Message

from coordinator.service.doors import run_door
from coordinator.service.mailbox import Mailbox
from coordinator.service.posts import Question
from coordinator.service.registry import Registry
from privacy.payloads import payload_digest
from protos.flower import CarrierGrid, parcel_of, records_of

_POLL_S = 0.02
_LOOK_S = 0.25


class ServiceGrid(CarrierGrid):
    """Carries one run's messages to the active members of a federation.

    Args:
        run: name of the run; what an earlier process of it left waiting is cleared by the first
            message.
        registry: who is a member.
        mailbox: where messages wait.
        names: of the members that take part; others hear nothing of the run.

    """

    def __init__(
        self, run: str, registry: Registry, mailbox: Mailbox, names: Collection[str]
    ) -> None:
        super().__init__()
        self._run, self._registry, self._mailbox = run, registry, mailbox
        self._names = frozenset(names)
        self._pushed: dict[str, Message] = {}
        self._staged = b"", b""  # and its digest
        self._door = mailbox.doors.open(run_door(run))

    def get_node_ids(self) -> Iterable[int]:
        """Addresses of those that are active and there."""
        present = self._registry.nodes_present()
        return [member.address for member in present if member.name in self._names]

    def label(self, address: int) -> str:
        """Name of the member at an address."""
        names = {member.address: member.name for member in self._registry.members()}
        return names.get(address) or super().label(address)

    def stage(self, payload: bytes) -> None:
        """Put a payload where nodes will fetch it; nobody is told yet."""
        self._staged = payload, self._mailbox.blobs.put(payload)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Leave messages in the mailbox; those of an earlier push are over."""
        pushed = list(messages)
        questions = list(_questions(pushed, *self._staged))
        self._pushed = dict(zip(self._mailbox.ask(self._run, questions), pushed, strict=True))
        return [message.metadata.message_id for message in self._pushed.values()]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return one answer that has come, or nothing."""
        wanted = set(message_ids)
        posted = [
            key for key, message in self._pushed.items() if message.metadata.message_id in wanted
        ]
        found = self._mailbox.first_answer(posted)
        if found is None:
            return []
        post, payload = found
        question = self._pushed[post.message]
        return [Message(records_of(post.kind, post.body, payload), reply_to=question)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, and pull replies until all are there or the time is over."""
        waiting, replies = set(self.push_messages(messages)), []
        end = time.monotonic() + (timeout or float("inf"))
        while waiting and time.monotonic() < end:
            pulled = list(self.pull_messages(waiting))
            waiting -= {message.metadata.reply_to_message_id for message in pulled}
            replies.extend(pulled)
            if not pulled:
                self.wait(_POLL_S)
        return replies

    def wait(self, seconds: float) -> None:
        """See `CarrierGrid.wait`; longer where the service knocks."""
        self._door.wait(max(seconds, _LOOK_S) if self._door.was_heard else seconds)

    def tidy(self) -> None:
        """Delete what earlier phases left."""
        self._mailbox.tidy()

    def close(self) -> None:
        """Clear what is left of the run in the mailbox, and what was staged in vain."""
        self._door.close()
        self._mailbox.clear(self._run, *filter(None, self._staged[1:]))


def _questions(messages: Iterable[Message], last: bytes, digest: bytes) -> Iterator[Question]:
    """What is to be asked; of the payload that was seen last, the digest is known."""
    for message in messages:
        metadata, parcel = message.metadata, parcel_of(message.content)
        if parcel[2] is not last:  # a round's model is one payload for all
            last, digest = parcel[2], payload_digest(parcel[2])
        yield Question(metadata.dst_node_id, metadata.message_type, parcel, digest)
