"""The weights of a Hugging Face folder that was exported, expanded to fp32."""

from pathlib import Path

from models.checkpoint import inspect_model, load_model
from models.decoder import Decoder
from models.formats.files import CheckpointError
from models.formats.fp8 import FP8_TYPE, LARGEST_ERROR
from models.formats.tensors import named_views
from models.variants.extras import VariantError
from models.variants.readback import Readback, rounding

_LARGEST_ERROR = {"F32": 0.0, "BF16": 2**-8, FP8_TYPE: LARGEST_ERROR}


def read_hf(folder: Path, exact: Decoder) -> Readback:
    """Read a folder back.

    Args:
        exact: the model that the folder was made of.

    Raises:
        VariantError: a damaged folder, another shape than the model's, or other constants.

    """
    try:
        stored, _ = load_model(folder)
        found = inspect_model(folder)
    except CheckpointError as error:
        raise VariantError(str(error)) from error
    if stored.config != exact.config:
        raise VariantError(
            "Expected the model's own shape and constants in config.json, got others. Export the "
            "folder again."
        )
    types = {name: each.type for name, each in found.headers.items()}
    pairs = zip(named_views(exact, found.family), named_views(stored, found.family), strict=True)
    roundings = tuple(
        rounding(name, tensor, written, _LARGEST_ERROR[types[name]])
        for (name, tensor), (_, written) in pairs
    )
    return Readback(stored, roundings)
