"""How the coordinator reaches nodes: one exchange per phase, whatever carries it."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from protos.wire import Parcel, WireMessage


@dataclass
class Traffic:
    """Bytes of messages and payloads, as the coordinator saw them."""

    sent_bytes: int = 0
    received_bytes: int = 0

    def since(self, before: "Traffic") -> "Traffic":
        """Return what was carried after an earlier state of this."""
        sent = self.sent_bytes - before.sent_bytes
        return Traffic(sent, self.received_bytes - before.received_bytes)


class Wait(Protocol):
    """How long to wait in one exchange.

    Attributes:
        left: addresses whose answers are waited for; the exchange keeps it.

    """

    left: Set[int]

    def is_over(self) -> bool:
        """Tell whether to go on without them."""


class Channel(Protocol):
    """A way to the nodes; addresses are the carrier's own and prove nothing.

    Attributes:
        traffic: what was carried so far.
        interrupt: called while it waits; what it raises ends the waiting.
        idle: called while it waits long: for what could wait, and would keep nodes waiting.

    """

    traffic: Traffic
    interrupt: Callable[[], None]
    idle: Callable[[], None]

    def addresses(self, count: int, deadline_s: float) -> Sequence[int]:
        """Wait until `count` nodes can be reached or the deadline, and return all that can."""

    def label(self, address: int) -> str:
        """Say who is at an address, as the carrier knows it: for people, it proves nothing."""

    def stage(self, payload: bytes) -> None:
        """Have a payload carried as far as it can be before it is asked with: this very object."""

    def exchange(
        self,
        action: str,
        requests: Mapping[int, Parcel],
        reply: type[WireMessage],
        deadline_s: float,
        wait: Wait | None = None,
    ) -> Iterator[tuple[int, Parcel]]:
        """Send a request to each address and yield replies as they come.

        Args:
            action: message type, such as "train.upload".
            requests: by address.
            reply: kind of reply; a `Refusal` may come instead. Other answers are left out.
            deadline_s: how long to wait for replies in all; who is late is left out.
            wait: tells whether to wait no longer; None waits for all.

        """
