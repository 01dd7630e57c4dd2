"""Where a model is run."""

from enum import StrEnum
from importlib import import_module


class Device(StrEnum):
    """A processor that a model can be run on."""

    CPU = "cpu"
    CUDA = "cuda"

    def check(self) -> None:
        """Refuse a device that is not there.

        Raises:
            ValueError: torch sees no GPU.

        """
        # torch is heavy, and who only reads a node's settings has no use for it
        if self is Device.CUDA and not import_module("torch").cuda.is_available():
            raise ValueError(
                "Expected a GPU for device cuda, got none that torch sees. Choose device cpu, or "
                "install a build of torch for this GPU."
            )
