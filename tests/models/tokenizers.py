"""Small tokenizers built as those of imported models are: Qwen's, Llama 3's, Mixtral's."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import models as bpe
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

TEXTS = [
    "The patient was seen on ward seven, at 10:45; blood pressure 120/80.",
    "Zwölf Boxkämpfer jagen Viktor. 한국어 텍스트 🙂\n\ttab  two  spaces",
    "def f(x):\n    return x ** 2\n" * 3,
]


def qwen(folder: Path) -> None:
    """NFC, a pre-tokeniser of its own, special tokens after the others, two ends."""
    backend = _byte_level()
    backend.normalizer = normalizers.NFC()
    backend.add_special_tokens(
        [AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    )
    end, chat_end = (backend.token_to_id(t) for t in ("<|endoftext|>", "<|im_end|>"))
    _write(
        folder, backend, "Qwen2Tokenizer", add_bos_token=False, bos_token=None,
        eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template="{{ messages }}",
    )  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, chat_end]}))


def llama(folder: Path) -> None:
    """Begin-of-text by a post-processor, end-of-text only in the tokenizer's settings."""
    backend = _byte_level()
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    backend.add_special_tokens([AddedToken(t, special=True) for t in (begin, end)])
    backend.post_processor = TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A {begin} $B",
        special_tokens=[(begin, backend.token_to_id(begin))],
    )
    backend.enable_truncation(8)
    _write(
        folder, backend, "PreTrainedTokenizerFast", bos_token=begin,
        eos_token={"content": end, "special": True},
    )  # fmt: skip


def mixtral(folder: Path) -> None:
    """SentencePiece's way: words marked by a blank, unknown bytes as tokens, <s> and </s>."""
    backend = Tokenizer(bpe.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(TEXTS[:1] * 3, BpeTrainer(vocab_size=330, special_tokens=special))
    backend.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    _write(
        folder, backend, "LlamaTokenizer", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        add_bos_token=True,
    )  # fmt: skip


def _byte_level() -> Tokenizer:
    backend = Tokenizer(bpe.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|[^\p{L}\p{N}]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(TEXTS * 3, BpeTrainer(vocab_size=290, initial_alphabet=alphabet))
    return backend


def _write(folder: Path, backend: Tokenizer, kind: str, **settings: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": kind, "auto_map": {"AutoTokenizer": "code.Evil"}, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
