"""A Flower Grid within one process: nodes are homes on this machine, answered one at a time.

The ClientApp and the messages are those of every other runtime; only the carrier is simulated.
Members can be made to drop out of any phase, which is how drop-outs are simulated and tested.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from privacy.rounds import RoundPlan
from protos.flower import COORDINATOR_ID, RUN_ID, CarrierGrid, from_records
from protos.round_messages import UploadRequest

Drops = Callable[[str, Message], bool]
"""(node's name, message) -> whether the node does not answer this message."""

_FAILED = 1


class LocalGrid(CarrierGrid):
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
        drops: Drops = lambda name, message: False,
    ) -> None:
        super().__init__()
        self._app, self._drops = client_app, drops
        self._names = dict(enumerate(sorted(homes), start=COORDINATOR_ID + 1))
        self._contexts = {
            node_id: Context(
                run_id=RUN_ID,
                node_id=node_id,
                node_config={"home": str(homes[name]), "runtime": "simulate"},
                state=RecordDict(),
                run_config={},
            )
            for node_id, name in self._names.items()
        }
        self._pending: OrderedDict[str, Message] = OrderedDict()

    def get_node_ids(self) -> Iterable[int]:
        """All nodes; one that drops out is still known."""
        return list(self._names)

    def label(self, address: int) -> str:
        """Name of the node at an address."""
        return self._names[address]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep messages until their replies are pulled; those of an earlier push are over."""
        self._pending.clear()
        ids = []
        for message in messages:
            self._pending[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answer the oldest of these messages that is still pending; a dropped one yields an error.

        A real carrier says nothing of a node that is gone, and the deadline passes. Here the error
        says it at once, so that what a simulation comes to does not depend on the time.
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
        if self._drops(self._names[node_id], message):
            return Message(Error(_FAILED, "dropped out"), reply_to=message)
        return self._app(message, self._contexts[node_id])


def run_server_app(server_app: ServerApp, grid: LocalGrid, home: Path) -> None:
    """Run the ServerApp of the run in `home` over a grid of this process."""
    context = Context(
        run_id=RUN_ID,
        node_id=COORDINATOR_ID,
        node_config={},
        state=RecordDict(),
        run_config={"home": str(home)},
    )
    server_app(grid, context)


class DropOuts:
    """Who drops out of which round: drawn from the seed, so that a resumed run draws the same.

    Args:
        rate: chance per node and attempt.
        seed: of the draw; public.

    """

    def __init__(self, rate: float, seed: int) -> None:
        self._rate, self._seed = rate, seed
        self._fate: dict[str, str] = {}

    def __call__(self, name: str, message: Message) -> bool:
        """Tell whether the node leaves this message without an answer."""
        action = message.metadata.message_type
        if action == "train.upload":
            self._fate[name] = self._draw(name, message)
            return self._fate[name] == "before upload"
        return action in ("query.survivors", "query.unmask") and self._fate.get(name, "") != ""

    def _draw(self, name: str, message: Message) -> str:
        request = from_records(message.content, UploadRequest).message
        assert isinstance(request, UploadRequest)
        plan = RoundPlan.from_payload(request.plan.payload)
        place = f"{self._seed}\0{name}\0{plan.round}\0{plan.attempt}".encode()
        uniform = int.from_bytes(hashlib.sha256(place).digest()[:8], "big") / 2**64
        if uniform >= self._rate:
            return ""
        return "before upload" if uniform < self._rate / 2 else "after upload"
