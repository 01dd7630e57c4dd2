"""An operator's wish to end a run: a file in its home, which its driver notices wherever it is."""

import json
import time
from pathlib import Path

from privacy.ledger.files import replace_durably
from privacy.secagg.aborts import AbortCode, SecAggAbort

CANCELLED_FILE = "CANCELLED"


class Cancellation:
    """Whether a run shall end before its last round; asked for durably, and for good.

    Args:
        home: the run's.

    """

    def __init__(self, home: Path) -> None:
        self._path = home / CANCELLED_FILE
        self._is_heeded = False

    @property
    def is_asked(self) -> bool:
        """Whether an operator asked for it."""
        return self._path.exists()

    def ask(self) -> None:
        """Ask for it; it stands when this returns."""
        if not self.is_asked:
            replace_durably(self._path, json.dumps({"asked": time.time()}).encode() + b"\n")

    def check(self) -> None:
        """Interrupt whatever the driver does, once.

        Raises:
            SecAggAbort: the run was cancelled, and the driver has not been told before.

        """
        if not self._is_heeded and self.is_asked:
            self._is_heeded = True
            raise SecAggAbort(AbortCode.CANCELLED, "The operator cancelled this run.")

    def ignore(self) -> None:
        """Interrupt no more: the run is over."""
        self._is_heeded = True
