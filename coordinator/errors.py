"""The errors of the coordinator's operator."""

from collections.abc import Iterable


class RunError(ValueError):
    """A home or a run that cannot start or go on as it is set up."""


class RestoredLedgerError(RunError):
    """The coordinator's ledger holds less than it has signed: nothing may be planned on it."""

    code = "restored-ledger"


class MissingMembersError(RunError):
    """Too few pinned members answered; those that did refused nothing."""


class SpentError(RunError):
    """The members' schedule holds no release for another attempt."""


class RefusedError(RunError):
    """A member refuses to enter an epoch.

    Attributes:
        address: where it is.

    """

    def __init__(self, message: str, address: int) -> None:
        super().__init__(message)
        self.address = address


class StartedAgainError(Exception):
    """Members started again, or went away, while an epoch was opened.

    Attributes:
        silent: addresses of those that did not answer any more.
        again: address of one that lost its keys; twice in one opening is once too often.

    """

    def __init__(self, message: str, silent: Iterable[int] = (), again: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.silent, self.again = frozenset(silent), frozenset(again)
