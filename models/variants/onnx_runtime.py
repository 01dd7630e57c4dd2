"""An ONNX decoder in ONNX Runtime, on the processor, with its cache.

Shapes: T positions, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer as Backend
from torch import Tensor

from models.variants.extras import VariantError, need


class OnnxRuntime:
    """See `models.variants.runtime.Runtime`.

    Args:
        path: `model.onnx`; its weights and `tokenizer.json` lie beside it.
        begin: what documents begin with.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        VariantError: ONNX Runtime does not load the file.

    """

    def __init__(self, path: Path, begin: int) -> None:
        library = need("onnxruntime", "mobile")
        self.name = f"onnxruntime {library.__version__}"
        self._begin = begin
        options = library.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # errors are raised
        try:
            self._session = library.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            self._tokenizer = Backend.from_file(str(path.parent / "tokenizer.json"))
        except Exception as error:  # both libraries have errors of their own
            raise VariantError(
                f"Expected a file that ONNX Runtime loads, got {path.name} ({error}). Export it "
                "again."
            ) from error
        self._past = [each for each in self._session.get_inputs() if each.name.startswith("past")]

    def encode(self, text: str) -> list[int]:
        """See `Runtime.encode`."""
        return [self._begin, *self._tokenizer.encode(text, add_special_tokens=False).ids]

    def logits(self, ids: Sequence[int]) -> Tensor:
        """See `Runtime.logits`."""
        return torch.from_numpy(self._run(ids, self._empty())[0][0])

    def decode(self, ids: Sequence[int], new_tokens: int) -> list[int]:
        """See `Runtime.decode`."""
        out: list[int] = []
        step, past = list(ids), self._empty()
        for _ in range(new_tokens):
            logits, *past = self._run(step, past)
            step = [int(logits[0, -1].argmax())]
            out += step
        return out

    def close(self) -> None:
        """See `Runtime.close`."""
        del self._session

    def _empty(self) -> list[Any]:
        sizes = ((1, each.shape[1], 0, each.shape[3]) for each in self._past)
        return [np.zeros(size, np.float32) for size in sizes]

    def _run(self, ids: Sequence[int], past: Sequence[Any]) -> list[Any]:
        """Read tokens after what the cache holds; logits, then the grown cache."""
        feeds = {each.name: values for each, values in zip(self._past, past, strict=True)}
        feeds["input_ids"] = np.array([list(ids)], np.int64)
        total = past[0].shape[2] + len(ids)
        feeds["attention_mask"] = np.ones((1, total), np.int64)
        found: list[Any] = self._session.run(None, feeds)
        return [found[-1], *found[:-1]]
