"""A grid on which answers take long, with a clock that moves as the test says."""

from collections.abc import Callable, Iterable
from types import SimpleNamespace

import pytest
from flwr.app import Message

from tests.away import Reach
from tests.small_federation import SmallFederation

DEADLINE_S = 600.0
IN_ROUNDS = ("train.upload", "query.survivors", "query.unmask")


class Slow(Reach):
    """A grid on which answers may take long, or never come.

    Each answer takes a second, and so does each look for one.

    Attributes:
        now: seconds on the clock.
        late: when the answer of a member to a type of message comes, on the clock.
        back: when members are there again, on the clock.

    """

    def __init__(self, federation: SmallFederation, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(federation)
        self.now = 0.0
        self.late: dict[tuple[str, str], float] = {}
        self.back: dict[str, float] = {}
        self.asked: Callable[[str, str], object] = lambda name, what: None
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.wait)
        for place in ("app", "attempt", "patience"):
            monkeypatch.setattr(f"coordinator.{place}.time", clock)
        self._drops = lambda name, message: False

    def get_node_ids(self) -> Iterable[int]:
        self.away = {name for name, when in self.back.items() if self.now < when}
        return super().get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = list(messages)
        for message in pushed:
            self.asked(*self.what(message))
        return super().push_messages(pushed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        due = [key for key in message_ids if self.now >= self.late.get(self._asks(key), 0.0)]
        pulled = super().pull_messages(due)
        self.now += len(list(pulled))
        return pulled

    def wait(self, seconds: float) -> None:
        self.now += 1.0

    def _asks(self, key: str) -> tuple[str, str]:
        return self.what(self._pending[key])

    def what(self, message: Message) -> tuple[str, str]:
        return self._names[message.metadata.dst_node_id], message.metadata.message_type
