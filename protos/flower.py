"""How our messages travel as Flower RecordDicts: one record of bytes, and a payload beside it.

Payloads (model parameters, masked words) are inline bytes on every runtime.
"""

from flwr.app import ConfigRecord, RecordDict

from protos.messages import Refusal
from protos.wire import Parcel, WireError, WireMessage

_RECORD = "arion"


def to_records(parcel: Parcel) -> RecordDict:
    """Wrap a message for Flower."""
    record = ConfigRecord(
        {
            "kind": type(parcel.message).__name__,
            "body": parcel.message.to_bytes(),
            "payload": parcel.payload,
        }
    )
    return RecordDict({_RECORD: record})


def from_records(records: RecordDict, *kinds: type[WireMessage]) -> Parcel:
    """Read a message of one of the kinds expected.

    Raises:
        WireError: another record, another kind, or bytes that are not one.

    """
    record = records.config_records.get(_RECORD)
    if record is None:
        raise WireError(f"Expected a record {_RECORD!r}, got {sorted(records)}.")
    known = {kind.__name__: kind for kind in kinds}
    kind, body, payload = record.get("kind"), record.get("body"), record.get("payload")
    if kind not in known or not isinstance(body, bytes) or not isinstance(payload, bytes):
        raise WireError(f"Expected one of {sorted(known)}, got {kind!r}.")
    return Parcel(known[str(kind)].from_bytes(body), payload)


def reply_from(records: RecordDict, kind: type[WireMessage]) -> Parcel:
    """Read a reply: the kind expected, or a refusal."""
    return from_records(records, kind, Refusal)
