"""How our messages travel as Flower RecordDicts: one record of bytes, and a payload beside it.

Payloads (model parameters, masked words) are inline bytes on every runtime.
"""

import itertools
import time

from flwr.app import DEFAULT_TTL, ConfigRecord, Message, Metadata, RecordDict
from flwr.serverapp import Grid

from protos.messages import Refusal
from protos.wire import Parcel, WireError, WireMessage

RUN_ID = 1
COORDINATOR_ID = 1
_RECORD = "arion"


class CarrierGrid(Grid):
    """What grids of ours have in common: one run, and messages built as Flower's own grids do."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def set_run(self, run: object) -> None:
        """Flower's engines name the run here; this grid has one."""

    def wait(self, seconds: float) -> None:
        """Wait so long, or until an answer may have come."""
        time.sleep(seconds)

    def stage(self, payload: bytes) -> None:
        """Make ready to send a payload that soon comes in a message."""

    def tidy(self) -> None:
        """Do what could wait, now that nodes are busy."""

    def label(self, address: int) -> str:
        """Say who is at an address: for people, it proves nothing."""
        return f"node {address}"

    @property
    def run(self) -> object:  # type: ignore[override]
        """There is no record of a run outside Flower's own engines."""
        raise AttributeError("Expected Flower's engine to ask for its run, got another grid.")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See `Grid.create_message`."""
        number = next(self._numbers)
        return new_message(content, message_type, number, dst_node_id, group=group_id, ttl=ttl)


def new_message(
    content: RecordDict,
    message_type: str,
    number: int,
    address: int,
    *,
    group: str = "",
    ttl: float | None = None,
) -> Message:
    """Build a message of the coordinator, for the node at an address."""
    metadata = Metadata(
        run_id=RUN_ID,
        message_id=str(number),
        src_node_id=COORDINATOR_ID,
        dst_node_id=address,
        reply_to_message_id="",
        group_id=group,
        created_at=time.time(),
        ttl=ttl or DEFAULT_TTL,
        message_type=message_type,
    )
    # The overloads do not list this way of building one.
    return Message(content=content, metadata=metadata)  # type: ignore[call-overload,no-any-return]


def to_records(parcel: Parcel) -> RecordDict:
    """Wrap a message for Flower."""
    return records_of(type(parcel.message).__name__, parcel.message.to_bytes(), parcel.payload)


def records_of(kind: str, body: bytes, payload: bytes) -> RecordDict:
    """Wrap a message that was not parsed, for Flower."""
    return RecordDict({_RECORD: ConfigRecord({"kind": kind, "body": body, "payload": payload})})


def parcel_of(records: RecordDict) -> tuple[str, bytes, bytes]:
    """Return kind, body and payload of a message without parsing it.

    Raises:
        WireError: another record.

    """
    # Not by `config_records`: a look at it leaves a cycle, and the payload stays in memory until
    # Python looks for cycles.
    record = records.get(_RECORD)
    if not isinstance(record, ConfigRecord):
        raise WireError(f"Expected a record {_RECORD!r}, got {sorted(records)}.")
    kind, body, payload = record.get("kind"), record.get("body"), record.get("payload")
    if not (isinstance(kind, str) and isinstance(body, bytes) and isinstance(payload, bytes)):
        raise WireError("Expected a kind, a body and a payload, got other fields.")
    return kind, body, payload


def from_records(records: RecordDict, *kinds: type[WireMessage]) -> Parcel:
    """Read a message of one of the kinds expected.

    Raises:
        WireError: another record, another kind, or bytes that are not one.

    """
    kind, body, payload = parcel_of(records)
    known = {kind.__name__: kind for kind in kinds}
    if kind not in known:
        raise WireError(f"Expected one of {sorted(known)}, got {kind!r}.")
    return Parcel(known[kind].from_bytes(body), payload)


def reply_from(records: RecordDict, kind: type[WireMessage]) -> Parcel:
    """Read a reply: the kind expected, or a refusal."""
    return from_records(records, kind, Refusal)
