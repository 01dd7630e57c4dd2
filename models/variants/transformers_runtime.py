"""A Hugging Face folder in transformers, on the processor.

Shapes: T positions, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.formats.files import CheckpointError, read_object
from models.formats.fp8 import is_fp8
from models.variants.extras import VariantError, need


class TransformersRuntime:
    """See `models.variants.runtime.Runtime`.

    Args:
        folder: config.json, safetensors, tokenizer.json.
        begin: what documents begin with; transformers' tokenizer may leave it to the caller.
        exact: compute in fp32 whatever the stored type; else in the stored type, as by default.

    Raises:
        MissingExtraError: transformers, or what it needs for the folder, is not installed.
        VariantError: transformers does not load the folder.

    """

    def __init__(self, folder: Path, begin: int, *, exact: bool = False) -> None:
        library = need("transformers", "foreign")
        library.utils.logging.disable_progress_bar()
        self.name = f"transformers {library.__version__}"
        self._begin = begin
        options = {"dtype": torch.float32 if exact else "auto"}
        if _is_fp8(folder):
            need("accelerate", "foreign")
            self.name += ", expanded from fp8"
            options["quantization_config"] = library.FineGrainedFP8Config(dequantize=True)
        try:
            self._tokenizer = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model = library.AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, **options
            )
        except (ValueError, OSError, KeyError, RuntimeError, ImportError) as error:
            raise VariantError(
                f"Expected a folder that transformers loads, got {folder.name} ({error}). Export "
                "it again."
            ) from error
        self._model.eval()

    def encode(self, text: str) -> list[int]:
        """See `Runtime.encode`."""
        return [self._begin, *self._tokenizer(text, add_special_tokens=False).input_ids]

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """See `Runtime.logits`."""
        found: Tensor = self._model(torch.tensor([list(ids)])).logits[0].float()
        return found

    @torch.no_grad()
    def decode(self, ids: Sequence[int], new_tokens: int) -> list[int]:
        """See `Runtime.decode`."""
        out: list[int] = []
        step, past = torch.tensor([list(ids)]), None
        for _ in range(new_tokens):
            found = self._model(step, past_key_values=past, use_cache=True)
            past, step = found.past_key_values, found.logits[:, -1:].argmax(-1)
            out.append(int(step))
        return out

    def close(self) -> None:
        """See `Runtime.close`."""
        del self._model


def _is_fp8(folder: Path) -> bool:
    try:
        return is_fp8(read_object(folder / "config.json"))
    except CheckpointError as error:
        raise VariantError(str(error)) from error
