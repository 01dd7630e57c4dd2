"""The newest head of each member's own ledger: a member that was restored learns what it lost."""

from collections.abc import Mapping
from pathlib import Path

from privacy.identity import Signed
from privacy.ledger.entries import LedgerError
from privacy.ledger.files import make_directory, replace_durably, turn
from privacy.ledger.head import parse_signed_line, signed_line, verify_head
from privacy.ledger.verify import WITNESS_SUFFIX

_TURN = ".turn"


class MemberHeads:
    """One file per member, on the disk before `keep` returns; several runs may keep heads at once.

    `ledger verify` holds the files against the members' ledgers where both are at hand.

    Args:
        folder: created if absent.
        members: pinned identity keys by name, hex.

    """

    def __init__(self, folder: Path, members: Mapping[str, str]) -> None:
        make_directory(folder)
        self._folder = folder
        self._pins = {name: bytes.fromhex(pin) for name, pin in members.items()}

    def newest(self, name: str) -> Signed | None:
        """The longest head of a member's ledger that was kept, or None."""
        path = self._path(name)
        if not path.exists():
            return None
        return parse_signed_line(path.read_bytes().removesuffix(b"\n"))

    def keep(self, name: str, signed: Signed) -> None:
        """Keep a member's head if it is longer than the one there is.

        Raises:
            SignatureError, LedgerError: it is not a head of this member's ledger.

        """
        head = verify_head(self._pins[name], signed)
        if head.ledger != name:
            raise LedgerError(
                f"Expected a head of the ledger {name!r}, got one of {head.ledger!r}. Ask {name} "
                "to check its node's name."
            )
        with turn(self._folder / _TURN):
            held = self.newest(name)
            if held is None or verify_head(self._pins[name], held).size < head.size:
                replace_durably(self._path(name), signed_line(signed) + b"\n")

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{WITNESS_SUFFIX}"
