"""An exchange over a grid: what could wait is done in long ones only."""

from collections.abc import Iterable
from types import SimpleNamespace

import pytest
from flwr.app import Message

from coordinator.app import GridChannel
from protos.flower import CarrierGrid, to_records
from protos.round_messages import Done, RunClose
from protos.wire import Parcel

LOOK_S = 0.05


class Late(CarrierGrid):
    """One node, whose answer is there after so many looks."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.now, self.tidied, self._left = 0.0, list[float](), looks
        self._asked: list[Message] = []

    def get_node_ids(self) -> Iterable[int]:
        return [2]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self._asked = list(messages)
        return [message.metadata.message_id for message in self._asked]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if self._left:
            self._left -= 1
            return []
        return [Message(to_records(Parcel(Done())), reply_to=each) for each in self._asked]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise AssertionError((messages, timeout))

    def wait(self, seconds: float) -> None:
        self.now += LOOK_S

    def tidy(self) -> None:
        self.tidied.append(self.now)


@pytest.mark.parametrize(("looks", "times"), [(0, 0), (4, 0), (9, 4)])
def test_what_could_wait_is_done_after_a_fifth_of_a_second(
    monkeypatch: pytest.MonkeyPatch, looks: int, times: int
) -> None:
    grid, idle = Late(looks), list[float]()
    monkeypatch.setattr("coordinator.app.time", SimpleNamespace(monotonic=lambda: grid.now))
    channel = GridChannel(grid)
    channel.idle = lambda: idle.append(grid.now)
    ((_, answer),) = channel.exchange("query.close", {2: Parcel(RunClose("f", "r"))}, Done, 60.0)
    assert answer.message == Done()
    assert len(grid.tidied) == times
    assert idle == grid.tidied
    assert all(now > 0.2 for now in idle)
