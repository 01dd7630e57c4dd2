"""Write the examples down: `python -m tests.compat.freeze` adds what is not there yet.

What is there stays: those are the bytes that an earlier version sends or left on a disk. Where a
format changes so that old bytes are read otherwise, on purpose, the old entry keeps its bytes, its
"reads" is corrected by hand, and the new form is added under a name of its own.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protos.arion.v1 import service_pb2
from tests.compat import examples, home_examples, reading
from tests.compat.model_examples import model_files

MESSAGES = Path(__file__).with_name("messages.json")
RECORDS = Path(__file__).with_name("records.json")


def frozen_messages() -> Iterator[tuple[str, bytes]]:
    """Bytes of a run's messages, and of the exchange's, by name and number."""
    for message in examples.wire_messages():
        yield type(message).__name__, message.to_bytes()
    for name in service_pb2.DESCRIPTOR.message_types_by_name:
        kind = getattr(service_pb2, name)
        choices = max((len(oneof.fields) for oneof in kind.DESCRIPTOR.oneofs), default=1)
        for choice in range(choices):
            made = examples.filled(kind, choice)
            yield f"exchange {name}", made.SerializeToString(deterministic=True)


def frozen_records(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Bytes of what is signed or lies on a disk, by name."""
    yield from examples.statements()
    for kind, line in examples.ledger_entries():
        yield f"entry {kind}", line
    yield from home_examples.node_files(folder)
    yield from home_examples.coordinator_files(folder)
    yield "experts job", examples.job().model_dump_json().encode()
    yield from model_files()


def main() -> None:
    """Add to both files."""
    with tempfile.TemporaryDirectory() as folder:
        _add(MESSAGES, frozen_messages(), Path(folder))
        _add(RECORDS, frozen_records(Path(folder)), Path(folder))


def _add(path: Path, made: Iterator[tuple[str, bytes]], folder: Path) -> None:
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    found: dict[str, Any] = {}
    for name, data in made:
        numbered = name
        while numbered in found:  # a second example of a kind
            numbered += "'"
        found[numbered] = known.get(numbered) or {
            **_spelled(data), "reads": reading.plain(reading.read(name, data, folder)),
        }  # fmt: skip
    lines = [f"{json.dumps(name)}: {json.dumps(each)}" for name, each in {**known, **found}.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _spelled(data: bytes) -> dict[str, str]:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return {"hex": data.hex()}
    is_text = text.replace("\n", "").isprintable() and len(text) > 0
    return {"text": text} if is_text else {"hex": data.hex()}


if __name__ == "__main__":
    main()
