"""A GGUF file in llama.cpp, on the processor.

Shapes: T positions, V vocabulary.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.variants.extras import VariantError, need

_F32 = 0  # ggml's number of fp32
_USUAL_BATCH = 512  # tokens that llama.cpp reads at once


@cache
def llama_cpp() -> Any:
    """Return llama-cpp-python, silenced: it takes warnings for errors, and errors are returned.

    Raises:
        MissingExtraError: it is not installed.

    """
    library = need("llama_cpp", "edge")
    library.llama_log_set(_silent(library), ctypes.c_void_p(0))
    return library


@cache  # llama.cpp keeps the address only
def _silent(library: Any) -> Any:
    return library.llama_log_callback(lambda level, text, data: None)


class LlamaRuntime:
    """See `models.variants.runtime.Runtime`.

    Args:
        path: a GGUF file. positions: longest sequence to be asked for.
        exact_cache: keys and values in fp32; llama.cpp's own default is fp16.
        every_logit: `logits` is going to be called; without it the memory is that of decoding.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        VariantError: llama.cpp does not load the file.

    """

    def __init__(
        self, path: Path, positions: int, *, exact_cache: bool = False, every_logit: bool = True
    ) -> None:
        library = llama_cpp()
        self.name = f"llama-cpp-python {library.__version__}"
        self._last_logits = library.llama_get_logits_ith
        cache = _F32 if exact_cache else None
        threads = torch.get_num_threads()
        together = positions if every_logit else min(positions, _USUAL_BATCH)
        try:
            self._llama = library.Llama(
                model_path=str(path),
                n_ctx=positions,
                n_batch=together,
                n_ubatch=together,
                n_threads=threads,
                n_threads_batch=threads,
                logits_all=every_logit,
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
            last = self._last_logits(self._llama.ctx, -1)
            out.append(int(np.ctypeslib.as_array(last, (self._llama.n_vocab(),)).argmax()))
            self._llama.eval(out[-1:])
        return out

    def close(self) -> None:
        """See `Runtime.close`."""
        self._llama.close()
