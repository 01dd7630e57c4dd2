"""A GGUF file in llama.cpp, on the processor.

Shapes: T positions, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.variants.extras import VariantError, need

_F32 = 0  # ggml's number of fp32


class LlamaRuntime:
    """See `models.variants.runtime.Runtime`.

    Args:
        path: a GGUF file. positions: longest sequence to be asked for.
        exact_cache: keys and values in fp32; llama.cpp's own default is fp16.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        VariantError: llama.cpp does not load the file.

    """

    def __init__(self, path: Path, positions: int, *, exact_cache: bool = False) -> None:
        library = need("llama_cpp", "edge")
        self.name = f"llama-cpp-python {library.__version__}"
        cache = _F32 if exact_cache else None
        threads = torch.get_num_threads()
        try:
            self._llama = library.Llama(
                model_path=str(path),
                n_ctx=positions,
                n_batch=positions,
                n_ubatch=positions,
                n_threads=threads,
                n_threads_batch=threads,
                logits_all=True,
                type_k=cache,
                type_v=cache,
                verbose=False,
            )
        except (ValueError, RuntimeError, AssertionError) as error:
            raise VariantError(
                f"Expected a GGUF file that llama.cpp loads, got {path.name} ({error}). Export it "
                "again."
            ) from error

    def encode(self, text: str) -> list[int]:
        """See `Runtime.encode`."""
        ids: list[int] = self._llama.tokenize(text.encode(), add_bos=True, special=False)
        return ids

    def logits(self, ids: Sequence[int]) -> Tensor:
        """See `Runtime.logits`."""
        self._llama.reset()
        self._llama.eval(list(ids))
        return torch.from_numpy(self._llama.scores[: len(ids)].copy())

    def decode(self, ids: Sequence[int], new_tokens: int) -> list[int]:
        """See `Runtime.decode`."""
        self._llama.reset()
        self._llama.eval(list(ids))
        out: list[int] = []
        for _ in range(new_tokens):
            out.append(int(np.argmax(self._llama.scores[len(ids) + len(out) - 1])))
            self._llama.eval(out[-1:])
        return out

    def close(self) -> None:
        """See `Runtime.close`."""
        self._llama.close()
