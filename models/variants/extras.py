"""Libraries that only some artefacts need: asked for by name, missing with a remedy."""

import importlib
from typing import Any, Literal

Extra = Literal["edge", "foreign", "mobile"]


class VariantError(ValueError):
    """A variant that cannot be planned, written or read."""


class MissingExtraError(VariantError):
    """A library is not installed.

    Attributes:
        extra: what brings it: `pip install 'arion-federated[EXTRA]'`.

    """

    def __init__(self, module: str, extra: Extra) -> None:
        self.extra = extra
        super().__init__(
            f"Expected {module} to be installed, got none. "
            f"Run pip install 'arion-federated[{extra}]'."
        )


def need(module: str, extra: Extra) -> Any:
    """Return a module of an extra.

    Raises:
        MissingExtraError: it is not installed, or is and cannot be loaded.

    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingExtraError(module.partition(".")[0], extra) from error
