"""A prompt within a model's chat template, as transformers renders it.

A template is a program of the model's folder. It is run in Jinja's sandbox, which reaches neither
files nor attributes of Python objects, and sees the conversation and the special tokens alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from models.tokenizer import Tokenizer

_ROLES = ("user", "assistant")


class ChatError(ValueError):
    """A conversation that the model's template does not render."""


@dataclass(frozen=True)
class Chat:
    """The conversations of a model.

    Attributes:
        template: compiled. special_tokens: by the names that templates use, such as bos_token.
        system: what is said to the model before all else; None says nothing, and the template may
            put words of its own there.

    """

    template: Template
    special_tokens: Mapping[str, str]
    system: str | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, system: str | None = None) -> "Chat":
        """Return the conversations of a tokenizer's model.

        Raises:
            ChatError: it has no template, or one that is no Jinja.

        """
        if tokenizer.chat_template is None:
            raise ChatError(
                "Expected a model with a chat template, got one without: it was not made for "
                "conversations. Give the prompt without --chat."
            )
        try:
            template = _environment().from_string(tokenizer.chat_template)
        except TemplateError as error:
            raise ChatError(
                f"Expected a chat template in Jinja, got {error}. Correct it in the model's "
                "tokenizer_config.json or chat_template.jinja."
            ) from error
        return cls(template, tokenizer.special_tokens, system)

    def render(self, turns: Sequence[str]) -> str:
        """Return the text after which the model answers; it holds the special tokens.

        Args:
            turns: the user's, the model's, the user's and so on, the user's last.

        Raises:
            ChatError: the template refuses them, or makes nothing of them.

        """
        messages = [
            {"role": _ROLES[index % 2], "content": turn} for index, turn in enumerate(turns)
        ]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        try:
            text = self.template.render(
                messages=messages, add_generation_prompt=True, **self.special_tokens
            )
        except Exception as error:  # a template's program can raise whatever Python does
            raise ChatError(
                f"Expected a chat template that renders {len(messages)} messages, got {error}. "
                "Give the prompt without --chat, or without --system."
            ) from error
        if not text:
            raise ChatError(
                "Expected text of the chat template, got none. Give the prompt without --chat."
            )
        return text


def _environment() -> ImmutableSandboxedEnvironment:
    """The functions and settings that templates are written for (transformers, chat templates)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
