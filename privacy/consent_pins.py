"""Pins in a `consent.toml`: written only where an officer was read the same fingerprint.

Comments and all other clauses stay as they are. What a line would change is checked by reading the
whole file again before it is written.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

from privacy.consent import ConsentError
from privacy.identity import fingerprint
from privacy.ledger.files import replace_durably

COORDINATOR = "coordinator"
"""Name of the coordinator's ledger, in pins and in witnessed heads."""
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def pin(path: Path, name: str, read_out: str, relayed: bytes) -> None:
    """Write a key into a consent, if its fingerprint is the one that was read out.

    Args:
        path: the `consent.toml`.
        name: of the member, or "coordinator".
        read_out: the fingerprint, as its owner read it out.
        relayed: the key that the coordinator relays, 32 bytes.

    Raises:
        ConsentError: another fingerprint, another key is pinned, or the file cannot be read;
            nothing was written.

    """
    check_read_out(name, read_out, relayed)
    text, clauses = _read(path)
    pinned = pinned_key(clauses, name)
    if pinned not in (None, relayed.hex()):
        raise ConsentError(
            _clause(name),
            f"Expected {name!r} not to be pinned yet, or by this key, got another one. If its "
            f"owner has a new key, remove the old line from {path.name} first.",
        )
    if pinned is None:
        replace_durably(path, _with(text, clauses, name, relayed.hex()).encode())


def check_read_out(name: str, read_out: str, relayed: bytes) -> None:
    """Refuse a relayed key that has another fingerprint than the one read out; ConsentError."""
    if _digits(read_out) != _digits(fingerprint(relayed)):
        raise ConsentError(
            _clause(name),
            f"Expected the fingerprint of {name!r} that the coordinator relays, "
            f"{fingerprint(relayed)}, got another or a mistyped one. Read it again, digit by "
            "digit, with its owner. If it stays another, someone is between you: pin nothing.",
        )


def pinned_key(clauses: dict[str, Any], name: str) -> str | None:
    """Return the key that a consent's clauses pin for a name, hex, or None."""
    key = clauses.get("coordinator_key") if name == COORDINATOR else _members(clauses).get(name)
    return key if isinstance(key, str) else None


def read_clauses(path: Path) -> dict[str, Any]:
    """Read the clauses of a consent that may not be whole yet; ConsentError as `pin`."""
    return _read(path)[1]


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        return text, tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise ConsentError(
            "(file)",
            f"Expected a readable TOML file at {path}, got: {error}. Draft one: arion node consent "
            "draft.",
        ) from error


def _with(text: str, clauses: dict[str, Any], name: str, key: str) -> str:
    """Add one line, and see that it is all that changed."""
    if name == COORDINATOR:
        place = re.search(r"^# .* arion node pin coordinator .*\n", text, re.MULTILINE)
        end = place.end() if place else 0
        new = f'{text[:end]}coordinator_key = "{key}"\n{text[end:]}'
        expected = {**clauses, "coordinator_key": key}
    else:
        line = f'{name} = "{key}"\n'
        table = re.search(r"^\[members\][ \t]*(#.*)?\n", text, re.MULTILINE)
        end = table.end() if table else len(text)
        new = text[:end] + line + text[end:]
        expected = {**clauses, "members": {**_members(clauses), name: key}}
    try:
        found = tomllib.loads(new)
    except tomllib.TOMLDecodeError:
        found = {}
    if found != expected:
        raise ConsentError(
            "members",
            "Expected a table [members] with one line per member, got another form. Write the "
            f'line {name} = "{key}" by hand.',
        )
    return new


def _members(clauses: dict[str, Any]) -> dict[str, Any]:
    members = clauses.get("members")
    return members if isinstance(members, dict) else {}


def _clause(name: str) -> str:
    return "coordinator_key" if name == COORDINATOR else "members"


def _digits(text: str) -> str:
    digits = re.sub(r"[\s-]", "", text.lower().strip().removeprefix("arion:"))
    return digits if _FINGERPRINT.fullmatch(digits) else ""
