"""Which data set every unit belongs to: kept apart here, spending on data sets need not add up.

A unit belongs to the data set under whose name this node first used it, and is left out of every
other one. So no unit is ever in two, whatever the files hold, and no refusal tells whether one was
(docs/privacy.md, section 14). Keys are compared as they are written, in one field; the file holds
their digests under a secret salt, and stays at the node.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from client.config import NodeError
from client.data import Record
from privacy.canonical import CanonicalError, canonical_bytes, parse_canonical
from privacy.consent import Consent
from privacy.ledger.entries import ReleaseDebited
from privacy.ledger.files import replace_durably

UNIT_KEYS_FILE = "unit-keys.jsonl"

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _First(_Line):
    """The field that holds the keys, and what their digests are salted with."""

    field: str
    salt: Digest


class _Bound(_Line):
    """Units that were first used under a data set's name."""

    data_set: str
    keys: list[Digest]


class UnitKeys:
    """The register of a node's units; it only grows.

    Args:
        path: the file; a missing one is a register without units.
        field: of the records, that holds the keys.

    Raises:
        NodeError: a damaged file, or keys of another field, which may name the same person anew.

    """

    def __init__(self, path: Path, field: str) -> None:
        self._path = path
        self._lines: list[bytes] = []
        self._heads: list[bytes] = []
        self._owner: dict[str, str] = {}
        first = _First(field=field, salt=secrets.token_hex(32))
        if path.exists():
            first = self._read(path.read_bytes().splitlines())
        else:
            self._append(first)
        if first.field != field:
            raise NodeError(
                f"Expected unit keys of the field {first.field!r}, as {path.name} holds them, got "
                f"{field!r} in node.toml. Keys of two fields cannot be told apart: set "
                "keep_data_sets_apart = false in the consent, or the field it was."
            )
        self._salt = bytes.fromhex(first.salt)

    def own(self, data_set: str, records: Sequence[Record]) -> list[Record]:
        """Return the records whose units belong to a data set, durably binding the new ones.

        Args:
            data_set: the name that the consent gives to the data.
            records: what the node would train on.

        """
        digests = {unit: self._digest(unit) for unit in {record.unit for record in records}}
        new = sorted(digest for digest in digests.values() if digest not in self._owner)
        if new:
            self._append(_Bound(data_set=data_set, keys=new))
            replace_durably(self._path, b"".join(line + b"\n" for line in self._lines))
            self._owner.update(dict.fromkeys(new, data_set))
        return [record for record in records if self._owner[digests[record.unit]] == data_set]

    def elsewhere(self, data_set: str, units: Iterable[str]) -> int:
        """Count units that belong to another data set; for the institution's own eyes."""
        owners = (self._owner.get(self._digest(unit), data_set) for unit in set(units))
        return sum(owner != data_set for owner in owners)

    def state(self, label: bytes) -> str:
        """Return what a ledger keeps of the register; under each label it looks like chance.

        Formal guarantee: HMAC-SHA256 under the salt: without it nothing is learned of the keys,
        nor whether two states are of one register.
        """
        return self._stamp(label, self._heads[-1])

    def has_been(self, label: bytes, state: str) -> bool:
        """Tell whether a state is of this register, now or before it grew."""
        return any(hmac.compare_digest(self._stamp(label, head), state) for head in self._heads)

    def _stamp(self, label: bytes, head: bytes) -> str:
        return hmac.digest(self._salt, b"state" + label + head, "sha256").hex()

    def _digest(self, unit: str) -> str:
        return hmac.digest(self._salt, b"key" + unit.encode(), "sha256").hex()

    def _append(self, line: _Line) -> None:
        """Chain a line to those before it: a head covers all of them."""
        self._lines.append(canonical_bytes(line.model_dump(mode="json")))
        before = self._heads[-1] if self._heads else b""
        self._heads.append(hashlib.sha256(before + self._lines[-1]).digest())

    def _read(self, lines: Sequence[bytes]) -> _First:
        try:
            first, *bound = map(parse_canonical, lines)
            self._append(opened := _First.model_validate(first))
            for line in map(_Bound.model_validate, bound):
                self._append(line)
                self._owner.update(dict.fromkeys(line.keys, line.data_set))
        except (CanonicalError, ValidationError, ValueError) as error:
            raise NodeError(
                f"Expected the register of unit keys in {self._path}, got a damaged file. Restore "
                "it, or set keep_data_sets_apart = false in the consent: runs then add up."
            ) from error
        return opened


def open_unit_keys(home: Path, consent: Consent, field: str | None) -> UnitKeys | None:
    """Open a node's register where its consent asks for one.

    Raises:
        NodeError: see `UnitKeys`.

    """
    if not consent.keep_data_sets_apart or field is None:
        return None
    return UnitKeys(home / UNIT_KEYS_FILE, field)


def verify_register(unit_keys: UnitKeys, debits: Iterable[ReleaseDebited]) -> None:
    """Refuse a register that is not the one by which earlier releases were kept apart.

    The last release's state covers all that the register held before it.

    Raises:
        NodeError: it was lost, replaced, or restored from an older copy.

    """
    for debit in reversed(list(debits)):
        if debit.unit_keys is None:
            continue
        if not unit_keys.has_been(bytes.fromhex(debit.plan_digest), debit.unit_keys):
            raise NodeError(
                f"Expected in {UNIT_KEYS_FILE} the register that this node's releases were made "
                "by, got another or an older one. Restore it, or set keep_data_sets_apart = false "
                "in the consent: runs then add up."
            )
        return
