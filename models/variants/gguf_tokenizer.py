"""A tokenizer as llama.cpp has it: byte-level BPE under the name of a pre-tokeniser it knows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.tokenizer import Tokenizer
from models.variants.extras import VariantError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# A split's pattern, and whether whole words skip the merges -> llama.cpp's name. None: GPT-2's
# pattern, which the byte-level step has itself.
NAMES = {
    (None, False): "gpt-2",
    (_WORDS + r"\p{N}" + _REST, False): "qwen2",
    (_WORDS + r"\p{N}{1,3}" + _REST, True): "llama-bpe",
}
_MOST_STOPS = 3


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer.

    Attributes:
        tokens: one per row of the embedding. control, added: ids of special tokens, and of added
            ones that are not special. unused: ids without a token.
        merges: in order of rank. pre: llama.cpp's name of the pre-tokeniser.
        stops: one to three: end of text, then end of turn, then end of message.
        composes: texts are brought into Unicode's composed form (NFC) before; llama.cpp does not.

    """

    tokens: tuple[str, ...]
    control: frozenset[int]
    added: frozenset[int]
    unused: frozenset[int]
    merges: tuple[str, ...]
    pre: str
    begin: int
    stops: tuple[int, ...]
    composes: bool
    chat_template: str | None


def vocabulary(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """Describe a tokenizer to llama.cpp.

    Args:
        size: rows of the model's embedding; those without a token get a name of their own.

    Raises:
        VariantError: another kind of tokenizer than byte-level BPE, a pre-tokeniser or normaliser
            that llama.cpp does not have, or more than three stop tokens.

    """
    found = tokenizer.description()
    model = found["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback") or model.get("dropout"):
        raise VariantError(
            "Expected a byte-level BPE tokenizer, got another kind, which is not written as GGUF. "
            "Export a Hugging Face folder (--format hf)."
        )
    if len(tokenizer.stop_ids) > _MOST_STOPS:
        raise VariantError(
            f"Expected at most {_MOST_STOPS} stop tokens, got {len(tokenizer.stop_ids)}. Leave the "
            "ones that matter in generation_config.json."
        )
    added = {each["id"]: bool(each["special"]) for each in found["added_tokens"]}
    names = {**model["vocab"], **{each["content"]: each["id"] for each in found["added_tokens"]}}
    by_id = {number: name for name, number in names.items()}
    return Vocabulary(
        tokens=tuple(by_id.get(number, f"[PAD{number}]") for number in range(size)),
        control=frozenset(number for number, special in added.items() if special),
        added=frozenset(number for number, special in added.items() if not special),
        unused=frozenset(range(size)) - by_id.keys(),
        merges=tuple(m if isinstance(m, str) else " ".join(m) for m in model["merges"]),
        pre=_pre_tokeniser(found),
        begin=tokenizer.begin_of_text_id,
        stops=tokenizer.stop_ids,
        composes=_composes(found),
        chat_template=tokenizer.chat_template,
    )


def _pre_tokeniser(found: Mapping[str, Any]) -> str:
    steps = found["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    split, level = (None, steps[0]) if len(steps) == 1 else (steps[0], steps[-1])
    pattern = None if split is None else split.get("pattern", {}).get("Regex")
    whole = split is None or (
        split["type"] == "Split" and split["behavior"] == "Isolated" and not split["invert"]
    )
    bytes_next = (
        len(steps) <= 2
        and level.get("type") == "ByteLevel"
        and not level["add_prefix_space"]
        and level.get("use_regex", True) == (split is None)
    )
    name = NAMES.get((pattern, bool(found["model"].get("ignore_merges"))))
    if name is None or not whole or not bytes_next:
        raise VariantError(
            f"Expected a pre-tokeniser out of {', '.join(NAMES.values())}, got another, which "
            "llama.cpp would split otherwise. Export a Hugging Face folder (--format hf)."
        )
    return name


def _composes(found: Mapping[str, Any]) -> bool:
    normaliser = found["normalizer"]
    if normaliser is not None and normaliser["type"] != "NFC":
        raise VariantError(
            f"Expected no normaliser or NFC, got {normaliser['type']}, which llama.cpp leaves out. "
            "Export a Hugging Face folder (--format hf)."
        )
    return normaliser is not None
