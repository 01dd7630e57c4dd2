"""Runtimes that artefacts ship for: each loads its own file and says what it computes.

Shapes: T positions, V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Runtime(Protocol):
    """An artefact, loaded by the library that people run it with.

    Attributes:
        name: of the library and its version.

    """

    name: str

    def encode(self, text: str) -> list[int]:
        """Token ids of a text by the artefact's own tokenizer, begin-of-text first."""

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Next-token logits at each position of one sequence, fp32 [T, V]."""

    def decode(self, ids: Sequence[int], new_tokens: int) -> list[int]:
        """The likeliest continuation, token by token with the runtime's cache; nothing stops it."""

    def close(self) -> None:
        """Give the memory back."""
