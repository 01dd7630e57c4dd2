"""A prompt within a model's chat template, rendered by transformers.

A template is a program of the model's folder. transformers runs it in a sandbox that keeps it from
files and from Python's internals; how long it runs nobody limits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import models as bpe

from models.tokenizer import Tokenizer
from models.variants.extras import need

_ROLES = ("user", "assistant")
_LONGEST_REASON = 200


class ChatError(ValueError):
    """A conversation that the model's template does not render."""


@dataclass(frozen=True)
class Chat:
    """The conversations of a model.

    Attributes:
        template: in Jinja. special_tokens: by the names that templates use, such as bos_token.
        system: what is said to the model before all else; None says nothing, and the template may
            put words of its own there.

    """

    template: str
    special_tokens: Mapping[str, str]
    system: str | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, system: str | None = None) -> "Chat":
        """Return the conversations of a tokenizer's model.

        Raises:
            ChatError: it has no template.

        """
        if tokenizer.chat_template is None:
            raise ChatError(
                "Expected a model with a chat template, got one without: it was not made for "
                "conversations. Give the prompt without --chat."
            )
        return cls(tokenizer.chat_template, tokenizer.special_tokens, system)

    def render(self, turns: Sequence[str]) -> str:
        """Return the text after which the model answers; it holds the special tokens.

        Args:
            turns: the user's, the model's, the user's and so on, the user's last.

        Raises:
            MissingExtraError: transformers is not installed.
            ChatError: the template refuses them, or makes no text of them.

        """
        messages = [
            {"role": _ROLES[index % 2], "content": turn} for index, turn in enumerate(turns)
        ]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        library = need("transformers", "foreign")
        try:
            text = _rendered(library, self.template, messages, self.special_tokens)
        except Exception as error:  # a template's program can raise whatever Python does
            raise ChatError(
                f"Expected a chat template that renders {len(messages)} messages, got "
                f"{_reason(error)}. Give the prompt without --chat, or without --system."
            ) from error
        if not text:
            raise ChatError(
                "Expected text of the chat template, got none. Give the prompt without --chat."
            )
        return text


def _rendered(
    library: Any, template: str, messages: list[dict[str, str]], special_tokens: Mapping[str, str]
) -> str:
    """Have a tokenizer of nothing but the special tokens render; ours cuts the text."""
    tokenizer = library.PreTrainedTokenizerFast(
        tokenizer_object=Backend(bpe.BPE()), **special_tokens
    )
    text = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    text.encode()  # lone surrogates are no text
    return str(text)


def _reason(error: Exception) -> str:
    said = " ".join(str(error).split())[:_LONGEST_REASON]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
