"""Tokenizers: a byte-level BPE of our own or an imported one, and the rows that a model is fed.

Shapes: B rows, T positions.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Encoding, decoders, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from tokenizers import models as bpe
from torch import Tensor

from models.formats.files import CheckpointError, inside, read_object
from models.language_model import IGNORED

END_OF_TEXT = "<|endoftext|>"

_FILE, _SETTINGS = "tokenizer.json", "tokenizer_config.json"
_TEMPLATE, _SPECIAL_TOKENS = "chat_template.jinja", "special_tokens_map.json"
# What of an imported tokenizer_config.json is kept. Never code (auto_map), and not the class: the
# plain one reads tokenizer.json as it is, where a named one may rebuild it by rules of its own.
_KEPT = (
    "bos_token", "eos_token", "pad_token", "unk_token", "chat_template", "model_max_length",
    "clean_up_tokenization_spaces",
)  # fmt: skip
_PADDING_ID = 0  # any token does: its target is IGNORED, and what comes before cannot see it


@dataclass(frozen=True)
class Row:
    """One sequence.

    Attributes:
        ids: token ids, one more than there are targets. target_bytes: what its targets cover.
        context: the first so many targets were another row's and do not count.

    """

    ids: tuple[int, ...]
    target_bytes: int
    context: int = 0


class Tokenizer:
    """Text to token ids and back, and the special tokens around a document.

    Attributes:
        stop_ids: tokens that end a generated text. end_of_text_id: the first of them, which closes
            a document. begin_of_text_id: opens one: what the tokenizer puts before a text; where it
            puts nothing `<|endoftext|>`, which then parted the documents of training (a chat's
            end-of-text never did); else end-of-text.
        vocab_size: 1 + the highest token id.

    Args:
        backend: the tokenizer proper. Truncation and padding are switched off.
        stop_ids: at least one token id of it.
        settings: what `tokenizer_config.json` says of special tokens and chat.

    Raises:
        CheckpointError: no stop_ids, or one that is no token.

    """

    def __init__(
        self, backend: Backend, stop_ids: Sequence[int], settings: Mapping[str, Any]
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._settings = {key: _plain(settings[key]) for key in _KEPT if key in settings}
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self.stop_ids = tuple(stop_ids)
        if not stop_ids or not all(0 <= stop < self.vocab_size for stop in stop_ids):
            raise CheckpointError(
                f"Expected an end-of-text token below {self.vocab_size}, got {list(stop_ids)}. Set "
                "eos_token_id in config.json or eos_token in tokenizer_config.json."
            )
        self.end_of_text_id = self.stop_ids[0]
        before, parting = backend.encode("").ids, backend.token_to_id(END_OF_TEXT)
        usual = self.end_of_text_id if parting is None else parting
        self.begin_of_text_id = before[0] if before else usual

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn byte-level merges from public text, with GPT-2's pre-tokeniser.

        `vocab_size` includes 256 bytes and end-of-text; every byte string round-trips.
        """
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
        names = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
        return cls(backend, _token_ids(backend, END_OF_TEXT), names)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read the tokenizer of a model folder.

        End of text is the `eos_token_id` of `generation_config.json`, else of `config.json`, else
        the `eos_token` of `tokenizer_config.json`.

        Raises:
            CheckpointError: no `tokenizer.json`, a damaged one, or no end-of-text token.

        """
        path = inside(folder, _FILE)
        if not path.is_file():
            raise CheckpointError(
                f"Expected a tokenizer at {path}, got none. Write one with transformers: "
                "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)."
            )
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(
                f"Expected a tokenizer at {path}, got a damaged one ({error}). Copy it again."
            ) from error
        named = _optional(folder, _SPECIAL_TOKENS)
        special = {key: token for key, token in named.items() if key.endswith("_token")}
        settings = special | _optional(folder, _SETTINGS)
        template = inside(folder, _TEMPLATE)
        if template.is_file():
            settings["chat_template"] = template.read_text(encoding="utf-8")
        return cls(backend, _stop_ids(folder, backend, settings), settings)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` as transformers reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self._files().items():
            (folder / name).write_text(text, encoding="utf-8")

    @property
    def stored_bytes(self) -> int:
        """Bytes of the files that `save` writes."""
        return sum(len(text.encode()) for text in self._files().values())

    def _files(self) -> dict[str, str]:
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self._settings}
        return {
            _FILE: self._backend.to_str(pretty=True),
            _SETTINGS: json.dumps(settings, indent=2) + "\n",
        }

    def description(self) -> dict[str, Any]:
        """What `tokenizer.json` holds."""
        found: dict[str, Any] = json.loads(self._backend.to_str())
        return found

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of a conversation, where there is one."""
        template = self._settings.get("chat_template")
        if isinstance(template, list):  # several, by name
            named = [each for each in template if isinstance(each, dict)]
            defaults = (each.get("template") for each in named if each.get("name") == "default")
            template = next(defaults, None)
        return template if isinstance(template, str) else None

    @property
    def special_tokens(self) -> dict[str, str]:
        """The text of special tokens by their names in `tokenizer_config.json`."""
        named = {name: token for name, token in self._settings.items() if name.endswith("_token")}
        return {name: token for name, token in named.items() if isinstance(token, str)}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without begin- or end-of-text."""
        return [e.ids for e in self._backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens are left out."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def rows(
        self, texts: Sequence[str], length: int, per_text: int | None, overlap: int = 0
    ) -> list[list[Row]]:
        """Cut each text into at most `per_text` rows of at most `length` targets; None for all.

        A row is begin-of-text or the previous row's last token, then `length` targets; the text's
        own end-of-text is a target. Tokens beyond the cap are left out. With an overlap a row
        begins that many tokens earlier, and they do not count again.

        Raises:
            ValueError: the overlap leaves nothing new in a row.

        """
        if not 0 <= overlap < length:
            raise ValueError(
                f"Expected an overlap of 0 to {length - 1} tokens, got {overlap}. A row of "
                f"{length} needs a new one."
            )
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [
            list(islice(self._cut(text, encoding, length, overlap), per_text))
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def _cut(self, text: str, encoding: Encoding, length: int, overlap: int) -> Iterator[Row]:
        ids = [self.begin_of_text_id, *encoding.ids, self.end_of_text_id]
        ends = [0, *(end for _, end in encoding.offsets), len(text)]
        done = 0
        while done < len(ids) - 1:
            begin = max(done - overlap, 0)
            last = min(begin + length, len(ids) - 1)
            size = len(text[ends[done] : ends[last]].encode())
            yield Row(tuple(ids[begin : last + 1]), size, done - begin)
            done = last


def stack_rows(rows: Sequence[Row], length: int) -> tuple[Tensor, Tensor]:
    """Return (inputs, targets), both int64 [B, length]; padding and context have target IGNORED."""
    token_BT = torch.full((len(rows), length), _PADDING_ID, dtype=torch.int64)
    target_BT = torch.full((len(rows), length), IGNORED, dtype=torch.int64)
    for index, row in enumerate(rows):
        count = len(row.ids) - 1
        ids = torch.tensor(row.ids, dtype=torch.int64)
        token_BT[index, :count], target_BT[index, :count] = ids[:-1], ids[1:]
        target_BT[index, : row.context] = IGNORED
    return token_BT, target_BT


def _optional(folder: Path, name: str) -> dict[str, Any]:
    path = inside(folder, name)
    return read_object(path) if path.is_file() else {}


def _stop_ids(folder: Path, backend: Backend, settings: Mapping[str, Any]) -> list[int]:
    """Token ids that end a text, by the first file that names any."""
    for name in ("generation_config.json", "config.json"):
        found = _optional(folder, name).get("eos_token_id")
        if found is not None:
            ids = found if isinstance(found, list) else [found]
            if not all(type(each) is int for each in ids):
                raise CheckpointError(
                    f"Expected token ids as eos_token_id in {folder / name}, got {found!r}. "
                    "Correct the file."
                )
            return ids
    return _token_ids(backend, _plain(settings.get("eos_token")))


def _plain(setting: Any) -> Any:
    """A special token's text, where a file spells it as an object."""
    return setting.get("content") if isinstance(setting, dict) else setting


def _token_ids(backend: Backend, token: object) -> list[int]:
    """Return the id of a token in a list, or an empty one where there is no such token."""
    found = backend.token_to_id(token) if isinstance(token, str) else None
    return [] if found is None else [found]
