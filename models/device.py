"""Where a model is run."""

from enum import StrEnum

import torch


class Device(StrEnum):
    """A processor that a model can be run on."""

    CPU = "cpu"
    CUDA = "cuda"

    def check(self) -> None:
        """Refuse a device that is not there.

        Raises:
            ValueError: torch sees no GPU.

        """
        if self is Device.CUDA and not torch.cuda.is_available():
            raise ValueError(
                "Expected a GPU for device cuda, got none that torch sees. Choose device cpu, or "
                "install a build of torch for this GPU."
            )
