"""How the long-running commands log: lines for people, or one JSON object a line for machines.

Log lines hold names of members and runs, methods, codes and sizes; never text, tensors, keys or
invitations. Of an error that nothing expected they hold its type and its place, not its text,
which may hold anything. Whatever a line holds, it stays one line.
"""

import json
import logging
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

_FIELDS = ("method", "code")


class LogFormat(StrEnum):
    """Who reads the log."""

    TEXT = "text"
    JSON = "json"


LogFormatOption = Annotated[
    LogFormat, typer.Option("--log-format", help="text, or json: one object a line.")
]


def set_up_logs(form: LogFormat) -> None:
    """Log to standard error, from INFO on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form is LogFormat.JSON else TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of every look at a schema


class TextLines(logging.Formatter):
    """Time, logger and message, with control characters escaped: no message forges a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        when = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        fault = _fault(record)
        said = record.getMessage() + (f" ({fault['error']} at {fault['at']})" if fault else "")
        plain = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in said)
        return f"{when} {record.name} {''.join(plain)}"


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and fields where a line has them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object."""
        found = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: getattr(record, name) for name in _FIELDS if hasattr(record, name)},
            **_fault(record),
        }
        return json.dumps(found, ensure_ascii=False)


def _fault(record: logging.LogRecord) -> dict[str, str]:
    """Type and place of the exception that a record was made with."""
    if not record.exc_info or record.exc_info[0] is None:
        return {}
    trace = record.exc_info[2]
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "unknown"
    return {"error": record.exc_info[0].__name__, "at": place}
