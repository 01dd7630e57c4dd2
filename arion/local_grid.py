"""A Flower Grid within one process: nodes are homes on this machine, answered one at a time.

The ClientApp and the messages are those of every other runtime; only the carrier is simulated.
Members can be made to drop out of any phase, which is how drop-outs are simulated and tested.
"""

import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from flwr.app import DEFAULT_TTL, Context, Error, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

Drops = Callable[[str, str], bool]
"""(node's name, message type) -> whether the node does not answer this message."""

_RUN_ID = 1
_SERVER_ID = 1
_FAILED = 1


class LocalGrid(Grid):
    """Carries messages to nodes of this process.

    A message is worked on when its reply is pulled, so at most one reply is in memory.

    Args:
        client_app: the app that answers.
        homes: each node's home by name.
        drops: who does not answer what; nobody drops out by default.

    """

    def __init__(
        self,
        client_app: ClientApp,
        homes: Mapping[str, Path],
        drops: Drops = lambda name, message_type: False,
    ) -> None:
        self._app, self._drops = client_app, drops
        self._names = dict(enumerate(sorted(homes), start=_SERVER_ID + 1))
        self._contexts = {
            node_id: Context(
                run_id=_RUN_ID,
                node_id=node_id,
                node_config={"home": str(homes[name]), "runtime": "simulate"},
                state=RecordDict(),
                run_config={},
            )
            for node_id, name in self._names.items()
        }
        self._pending: OrderedDict[str, Message] = OrderedDict()
        self._numbers = itertools.count(1)

    def set_run(self, run: object) -> None:
        """Flower's engines name the run here; this grid has one."""

    @property
    def run(self) -> object:  # type: ignore[override]
        """There is no record of a run outside Flower's own engines."""
        raise AttributeError("Expected Flower's engine to ask for its run, got the local grid.")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See `Grid.create_message`."""
        metadata = Metadata(
            run_id=_RUN_ID,
            message_id=str(next(self._numbers)),
            src_node_id=_SERVER_ID,
            dst_node_id=dst_node_id,
            reply_to_message_id="",
            group_id=group_id,
            created_at=time.time(),
            ttl=ttl or DEFAULT_TTL,
            message_type=message_type,
        )
        # Flower's own grids build messages this way; the overloads do not list it.
        return Message(content=content, metadata=metadata)  # type: ignore[call-overload,no-any-return]

    def get_node_ids(self) -> Iterable[int]:
        """All nodes; one that drops out is still known."""
        return list(self._names)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep messages until their replies are pulled."""
        ids = []
        for message in messages:
            self._pending[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answer the oldest of these messages that is still pending; a dropped one yields an error.

        A real carrier says nothing of a node that is gone, and the deadline passes. Here the error
        says it at once, and the coordinator treats both alike.
        """
        wanted = set(message_ids)
        for message_id in list(self._pending):
            if message_id in wanted:
                return [self._answer(self._pending.pop(message_id))]
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, and pull all replies."""
        return [self._answer(self._pending.pop(i)) for i in list(self.push_messages(messages))]

    def _answer(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        if self._drops(self._names[node_id], message.metadata.message_type):
            return Message(Error(_FAILED, "dropped out"), reply_to=message)
        return self._app(message, self._contexts[node_id])
