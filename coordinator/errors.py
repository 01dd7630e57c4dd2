"""The error of the coordinator's operator."""


class RunError(ValueError):
    """A home or a run that cannot start or go on as it is set up."""
