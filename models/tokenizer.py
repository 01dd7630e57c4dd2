"""Byte-level BPE, trained on public text only, and the rows that a model is fed.

Shapes: B rows, T positions.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, pre_tokenizers, trainers
from tokenizers import models as bpe
from torch import Tensor

from models.language_model import IGNORED

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0


@dataclass(frozen=True)
class Row:
    """One sequence: token ids, one more than its targets, and the bytes its targets cover."""

    ids: tuple[int, ...]
    target_bytes: int


class Tokenizer:
    """A byte-level BPE tokenizer with GPT-2's pre-tokeniser; every byte string round-trips."""

    def __init__(self, backend: Backend) -> None:
        if backend.token_to_id(END_OF_TEXT) != END_OF_TEXT_ID:
            raise ValueError(
                f"Expected {END_OF_TEXT} as token {END_OF_TEXT_ID}, got another tokenizer. "
                "Use a tokenizer that `Tokenizer.train` made."
            )
        self._backend = backend

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn merges from public text; `vocab_size` includes 256 bytes and end-of-text."""
        backend = Backend(bpe.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read `tokenizer.json` of a model folder."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"Expected a tokenizer at {path}, got none. Point at a model folder.")
        return cls(Backend.from_file(str(path)))

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` as transformers reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "pad_token": END_OF_TEXT,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

    @property
    def vocab_size(self) -> int:
        """Number of tokens there are."""
        return self._backend.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without end-of-text."""
        return [e.ids for e in self._backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; end-of-text is left out."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def rows(self, texts: Sequence[str], length: int, per_text: int) -> list[list[Row]]:
        """Cut each text into at most `per_text` rows of at most `length` targets.

        A row is end-of-text or the previous row's last token, then `length` targets; the text's
        own end-of-text is a target. Tokens beyond the cap are left out.
        """
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        cut = []
        for text, encoding in zip(texts, encodings, strict=True):
            ids = [END_OF_TEXT_ID, *encoding.ids, END_OF_TEXT_ID]
            starts = range(0, len(ids) - 1, length)
            rows = []
            for begin in list(starts)[:per_text]:
                piece = ids[begin : begin + length + 1]
                ends = [0, *(end for _, end in encoding.offsets), len(text)]
                last = min(begin + length, len(ids) - 1)
                size = len(text[ends[min(begin, len(ends) - 1)] : ends[last]].encode())
                rows.append(Row(tuple(piece), size))
            cut.append(rows)
        return cut


def stack_rows(rows: Sequence[Row], length: int) -> tuple[Tensor, Tensor]:
    """Return (inputs, targets), both int64 [B, length]; padding has target IGNORED."""
    token_BT = torch.full((len(rows), length), END_OF_TEXT_ID, dtype=torch.int64)
    target_BT = torch.full((len(rows), length), IGNORED, dtype=torch.int64)
    for index, row in enumerate(rows):
        count = len(row.ids) - 1
        ids = torch.tensor(row.ids, dtype=torch.int64)
        token_BT[index, :count], target_BT[index, :count] = ids[:-1], ids[1:]
    return token_BT, target_BT
