"""Writing of safetensors files that are for whoever may read the folder they lie in."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors for PyTorch, with the permissions that any new file gets.

    safetensors makes files that their owner alone can read: a server that runs as another user
    could read a model's config.json and not its weights.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode)
