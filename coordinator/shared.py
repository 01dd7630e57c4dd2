"""What all runs of one coordinator share: its ledger, and the count of epochs.

Runs are processes of their own. Each takes turns with the others: the ledger has one history, its
heads are shown to the members in its order, and no two runs open an epoch of one number.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coordinator.errors import RunError
from privacy.ledger.files import make_directory, replace_durably, turn
from privacy.ledger.log import LedgerLog

LEDGER_FOLDER = "ledger"
LEDGER_NAME = "coordinator"
MEMBERS_FOLDER = "members"
RUNS_FOLDER = "runs"
EPOCHS_FILE = "epochs"
_TURN = ".turn"


class SharedLedger:
    """The coordinator's ledger, held by one run at a time.

    Args:
        home: the coordinator's.

    """

    def __init__(self, home: Path) -> None:
        self._folder = home / LEDGER_FOLDER
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


def next_epoch(home: Path) -> int:
    """Return a number that no epoch of this coordinator had; durable before it is used.

    Args:
        home: the coordinator's.

    Raises:
        RunError: the count is damaged.

    """
    path = home / EPOCHS_FILE
    with turn(home / f"{EPOCHS_FILE}.turn"):
        text = path.read_text() if path.exists() else "0"
        if not text.strip().isdecimal():
            raise RunError(
                f"Expected a number in {path}, got other text. Restore it from a backup."
            )
        epoch = int(text) + 1
        replace_durably(path, f"{epoch}\n".encode())
    return epoch
