"""The errors of the coordinator's operator."""


class RunError(ValueError):
    """A home or a run that cannot start or go on as it is set up."""


class RestoredLedgerError(RunError):
    """The coordinator's ledger holds less than it has signed: nothing may be planned on it."""

    code = "restored-ledger"


class MissingMembersError(RunError):
    """Pinned members did not answer; those that did refused nothing."""
