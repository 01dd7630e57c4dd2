"""What all runs of one coordinator share: its ledger, and the count of epochs.

Runs are processes of their own. Each takes turns with the others: the ledger has one history, its
heads are shown to the members in its order, and no two runs open an epoch of one number.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coordinator.errors import RestoredLedgerError, RunError
from privacy.identity import Signed
from privacy.ledger.entries import RestoredError
from privacy.ledger.files import make_directory, replace_durably, turn
from privacy.ledger.head import parse_signed_line, signed_line, verify_head
from privacy.ledger.log import LedgerLog

LEDGER_FOLDER = "ledger"
LEDGER_NAME = "coordinator"
MEMBERS_FOLDER = "members"
RUNS_FOLDER = "runs"
EPOCHS_FILE = "epochs"
RESTORED_FILE = "RESTORED"
"""Holds a head that this coordinator signed and its ledger lacks; gone once the ledger has it."""
_TURN = ".turn"
_NS_IN_MS = 1_000_000  # nobody opens an epoch in each millisecond


class SharedLedger:
    """The coordinator's ledger, held by one run at a time.

    Args:
        home: the coordinator's.

    """

    def __init__(self, home: Path) -> None:
        self._folder = home / LEDGER_FOLDER
        self._restored = home / RESTORED_FILE
        make_directory(self._folder)
        self._log: LedgerLog | None = None
        self._is_changed = True

    def close(self) -> None:
        """Give files back."""
        if self._log is not None:
            self._log.close()

    @contextmanager
    def turn(self) -> Iterator[LedgerLog]:
        """Hold the ledger: nobody else writes to it, or shows its heads, within the block."""
        with turn(self._folder / _TURN):
            if self._log is None:
                self._log = LedgerLog(self._folder, LEDGER_NAME)
            elif self._log.retake():
                self._is_changed = True
            try:
                yield self._log
            finally:
                self._log.release()

    def was_changed(self) -> bool:
        """Tell, within a turn, whether another run wrote since this was asked last."""
        changed, self._is_changed = self._is_changed, False
        return changed

    def hold_against(self, public_key: bytes, signed: Signed) -> int:
        """Hold the ledger, within a turn, against a head of it that somebody brings.

        A head that it lacks stays in the home, so that no run goes on, whoever its members are.

        Args:
            public_key: the coordinator's own, 32 bytes.
            signed: the head.

        Returns:
            How many entries the head covers.

        Raises:
            SignatureError, LedgerError: not a head of this coordinator's ledger.
            RestoredLedgerError: the ledger was restored from an older copy.

        """
        assert self._log is not None, "a ledger is held against heads within a turn"
        head = verify_head(public_key, signed)
        try:
            self._log.verify_not_restored(public_key, signed)
        except RestoredError as error:
            if not self._restored.exists():
                replace_durably(self._restored, signed_line(signed) + b"\n")
            raise RestoredLedgerError(
                f"{RestoredLedgerError.code}: Expected the {head.size} entries that this "
                f"coordinator signed on {head.time} and a member holds, got a ledger of "
                f"{self._log.size} entries that lacks them: it was restored from an older copy. "
                "Nothing was planned. Restore the newest backup; where none holds them, follow "
                "'The coordinator's ledger is older' in docs/deploy.md."
            ) from error
        return head.size

    def verify_not_restored(self, public_key: bytes) -> None:
        """Hold the ledger, within a turn, against a head that a run found missing before.

        Raises:
            RestoredLedgerError: it still is.

        """
        if self._restored.exists():
            line = self._restored.read_bytes().removesuffix(b"\n")
            self.hold_against(public_key, parse_signed_line(line))
            self._restored.unlink()


def leave_epochs(home: Path) -> None:
    """Go on far beyond the epochs that may have been opened since this copy of a home was made.

    Members refuse an epoch that they left. By the clock, so that a copy which is used twice does
    not come to the same numbers again; they go to 2^53.
    """
    path = home / EPOCHS_FILE
    replace_durably(path, f"{max(_count(path), time.time_ns() // _NS_IN_MS)}\n".encode())


def next_epoch(home: Path) -> int:
    """Return a number that no epoch of this coordinator had; durable before it is used.

    Args:
        home: the coordinator's.

    Raises:
        RunError: the count is damaged.

    """
    path = home / EPOCHS_FILE
    with turn(home / f"{EPOCHS_FILE}.turn"):
        epoch = _count(path) + 1
        replace_durably(path, f"{epoch}\n".encode())
    return epoch


def _count(path: Path) -> int:
    text = path.read_text() if path.exists() else "0"
    if not text.strip().isdecimal():
        raise RunError(f"Expected a number in {path}, got other text. Restore it from a backup.")
    return int(text)
