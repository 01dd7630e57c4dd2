"""The keys that a verifier trusts: `pins.json`, by name of the ledger's owner."""

from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from models.faults import first_fault
from privacy.canonical import canonical_bytes
from privacy.ledger.entries import LedgerError, LedgerKind, Name

PINS_FILE = "pins.json"


class Pin(BaseModel):
    """The identity key of a ledger's owner, and whether it is a node or the coordinator."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    public_key: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    kind: LedgerKind

    @property
    def key(self) -> bytes:
        """The raw Ed25519 public key, 32 bytes."""
        return bytes.fromhex(self.public_key)


Pins: TypeAlias = dict[Name, Pin]
_ADAPTER: TypeAdapter[Pins] = TypeAdapter(dict[Name, Pin])


def load_pins(path: Path) -> Pins:
    """Read `pins.json`: {name: {"public_key": 64 hex digits, "kind": "node" | "coordinator"}}.

    Raises:
        LedgerError: unreadable or not of that form.

    """
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except OSError as error:
        raise LedgerError(
            f"Expected pinned keys in {path}, got {error.strerror}. Give the file with --pins."
        ) from error
    except ValidationError as error:
        raise LedgerError(
            f"Expected {{name: {{public_key, kind}}}} in {path.name}, got a bad "
            f"{first_fault(error, 'file')}. Ask the ledgers' owners for their keys."
        ) from error


def pins_bytes(pins: Pins) -> bytes:
    """Return the content of a `pins.json` for these keys."""
    return canonical_bytes({name: pin.model_dump(mode="json") for name, pin in pins.items()})
