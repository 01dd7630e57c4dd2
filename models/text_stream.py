"""Text out of tokens as they come: whole characters only, and nothing from a stop string on."""

from collections.abc import Sequence

from models.tokenizer import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CONTEXT = 4  # tokens of the prompt that are decoded along, for tokenizers that mark word starts


class TokenText:
    """Decodes token by token; a character whose bytes are not all there yet is held back.

    The pieces together are the text that decoding all tokens at once gives, as far as the tokens
    are valid UTF-8 (byte-level tokenizers: always).
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids[-_CONTEXT:])
        # Text up to _told is out; decoding begins at _begin so that it has something before it.
        self._begin, self._told = 0, len(self._ids)

    def add(self, token: int) -> str:
        """Take a token; returns the text that is whole now, often empty."""
        self._ids.append(token)
        text = self._untold()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._begin, self._told = self._told, len(self._ids)
        return text

    def close(self) -> str:
        """Return what is held back, with a replacement character for bytes that never came."""
        text = self._untold()
        self._begin = self._told = len(self._ids)
        return text

    def _untold(self) -> str:
        before = self._tokenizer.decode(self._ids[self._begin : self._told])
        return self._tokenizer.decode(self._ids[self._begin :])[len(before) :]


class StopStrings:
    """Passes text on until a stop string is complete; what may begin one is held back.

    The first stop string to be complete counts, however the text is cut into pieces.

    Raises:
        ValueError: an empty stop string.

    """

    def __init__(self, stop: Sequence[str]) -> None:
        if not all(stop):
            raise ValueError("Expected stop strings of a character or more, got an empty one.")
        self._stop, self._held = tuple(stop), ""

    def add(self, text: str) -> tuple[str, bool]:
        """Take text; returns (text to pass on, whether a stop string ended it)."""
        self._held += text
        found = [(at + len(s), at) for s in self._stop if (at := self._held.find(s)) >= 0]
        end = min(found)[1] if found else len(self._held) - self._undecided()
        passed, self._held = self._held[:end], "" if found else self._held[end:]
        return passed, bool(found)

    def close(self) -> str:
        """Return what is held back: it began no stop string after all."""
        held, self._held = self._held, ""
        return held

    def _undecided(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = min(len(self._held), max(map(len, self._stop), default=1) - 1)
        sizes = range(longest, 0, -1)
        return next((n for n in sizes if any(s.startswith(self._held[-n:]) for s in self._stop)), 0)
