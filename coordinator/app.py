"""The Flower ServerApp: a thin driver over the durable rounds, on any Flower Grid."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from coordinator.channel import Traffic, Wait
from coordinator.driver import RunDriver
from protos.flower import CarrierGrid, reply_from, to_records
from protos.wire import Parcel, WireError, WireMessage

app = ServerApp()

_LOG = logging.getLogger("arion.coordinator")
_POLL_S = 0.05
_FIRST_POLL_S = 0.002
_LATE_S = 0.2
"""Nodes that took so long to answer train: what could wait is done now."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Drive the run whose home the run config names, from wherever it stands."""
    home = Path(str(context.run_config["home"]))
    driver = RunDriver(home, GridChannel(grid))
    try:
        driver.run()
    finally:
        driver.close()


class GridChannel:
    """`coordinator.channel.Channel` over a Flower Grid; addresses are Flower's node ids."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        ours = grid if isinstance(grid, CarrierGrid) else None
        self._wait = ours.wait if ours else time.sleep
        self._label = ours.label if ours else "node {}".format
        self._stage = ours.stage if ours else None
        self._tidy = ours.tidy if ours else _never
        self.traffic = Traffic()
        self.interrupt: Callable[[], None] = _never
        self.idle: Callable[[], None] = _never

    def addresses(self, count: int, deadline_s: float) -> Sequence[int]:
        """See `Channel.addresses`."""
        end = time.monotonic() + deadline_s
        while len(found := sorted(self._grid.get_node_ids())) < count and time.monotonic() < end:
            self.interrupt()
            time.sleep(_POLL_S)
        return found

    def label(self, address: int) -> str:
        """See `Channel.label`."""
        return self._label(address)

    def stage(self, payload: bytes) -> None:
        """See `Channel.stage`; Flower's own grids know no such thing."""
        if self._stage is not None:
            self._stage(payload)

    def exchange(
        self,
        action: str,
        requests: Mapping[int, Parcel],
        reply: type[WireMessage],
        deadline_s: float,
        wait: Wait | None = None,
    ) -> Iterator[tuple[int, Parcel]]:
        """See `Channel.exchange`; replies are pulled one by one, so that memory stays small."""
        if not requests:
            return
        messages = [
            self._grid.create_message(to_records(parcel), action, address, "")
            for address, parcel in requests.items()
        ]
        self.traffic.sent_bytes += sum(map(_size, requests.values()))
        pushed = set(self._grid.push_messages(messages))  # Flower may leave some out
        sent = (message.metadata for message in messages)
        waiting = {each.message_id: each.dst_node_id for each in sent if each.message_id in pushed}
        began, pause = time.monotonic(), _FIRST_POLL_S
        end, late = began + deadline_s, began + _LATE_S
        while waiting:
            self.interrupt()
            pulled = list(self._grid.pull_messages(sorted(waiting)))
            for message in pulled:
                waiting.pop(message.metadata.reply_to_message_id, None)
                parcel = self._read(message, reply)
                if parcel is not None:
                    yield message.metadata.src_node_id, parcel
            # What has come counts, however late we look.
            if not pulled and (time.monotonic() >= end or _is_over(wait, waiting.values())):
                break
            # Replies come soon or after training: first it looks often, then less so.
            pause = _FIRST_POLL_S if pulled else min(1.5 * pause, _POLL_S)
            if not pulled:
                if time.monotonic() > late:
                    self._tidy()
                    self.idle()
                self._wait(pause)
        if wait is not None:
            wait.left = set(waiting.values())

    def _read(self, message: Message, reply: type[WireMessage]) -> Parcel | None:
        """Read a reply; what is no message of ours is logged and left out."""
        address = message.metadata.src_node_id
        if message.has_error():
            _LOG.warning("%s failed (code %d)", self.label(address), message.error.code)
            return None
        try:
            parcel = reply_from(message.content, reply)
        except WireError as error:
            _LOG.warning("%s: %s", self.label(address), error)
            return None
        self.traffic.received_bytes += _size(parcel)
        return parcel


def _is_over(wait: Wait | None, left: Iterable[int]) -> bool:
    if wait is None:
        return False
    wait.left = set(left)
    return wait.is_over()


def _never() -> None:
    """Nobody interrupts."""


def _size(parcel: Parcel) -> int:
    return len(parcel.message.to_bytes()) + len(parcel.payload)
