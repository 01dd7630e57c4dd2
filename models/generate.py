"""Text from a decoder: prompts are read at once, then a token per row and step.

A row's text depends on nothing but its prompt, the settings and its own random numbers, whichever
rows share the batch.

Shapes: B rows still going, T positions, D hidden, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from models import ops
from models.cache import KeyValueCache
from models.decoder import Decoder
from models.experts import ALL_EXPERTS, Activation
from models.sampling import GREEDY, Sampling, distribution, draw, penalise
from models.text_stream import StopStrings, TokenText
from models.tokenizer import Tokenizer


class Finish(StrEnum):
    """Why a text ended."""

    END_OF_TEXT = "end_of_text"
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class Settings:
    """What is generated, the same for all prompts.

    Attributes:
        max_new_tokens: most tokens per prompt, at least 1. sampling: how each is chosen.
        stop: strings that end a text and are left out of it.
        activation: how many experts each token uses.
        begin_of_text: whether it is put before each prompt; False for prompts that begin as they
            should, such as those of `models.chat`.

    Raises:
        ValueError: no new token, or an empty stop string.

    """

    max_new_tokens: int = 128
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    activation: Activation = ALL_EXPERTS
    begin_of_text: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"Expected max_new_tokens >= 1, got {self.max_new_tokens}. Raise it.")
        StopStrings(self.stop)


@dataclass(frozen=True)
class Piece:
    """One token of one prompt's text.

    Attributes:
        row: index of the prompt. token: its id. text: what may be shown now: whole characters, no
            part of a stop string; often empty. finish: why the text ends here, or None.

    """

    row: int
    token: int
    text: str
    finish: Finish | None


@dataclass(frozen=True)
class Completion:
    """One prompt's text; `tokens` hold the one that ended it too."""

    text: str
    tokens: tuple[int, ...]
    finish: Finish


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    settings: Settings,
    generator: torch.Generator | None = None,
) -> list[Completion]:
    """Return a completion per prompt. Arguments and errors are those of `stream`."""
    pieces: list[list[Piece]] = [[] for _ in prompts]
    for piece in stream(model, tokenizer, prompts, settings, generator):
        pieces[piece.row].append(piece)
    return [
        Completion("".join(p.text for p in row), tuple(p.token for p in row), _finish(row[-1]))
        for row in pieces
    ]


def stream(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    settings: Settings,
    generator: torch.Generator | None = None,
) -> Iterator[Piece]:
    """Check everything, then yield each token of each prompt as it is chosen.

    Args:
        model: the decoder. tokenizer: its tokenizer.
        prompts: read as one batch; an empty one begins a text.
        settings: the same for all.
        generator: source of one seed per prompt, in order; needed above temperature 0.

    Raises:
        ValueError: no generator where one is needed, and those of `prompt_ids`.

    """
    if settings.sampling.temperature > 0 and generator is None:
        raise ValueError("Expected a generator above temperature 0, got none. Pass a seeded one.")
    ids = prompt_ids(model, tokenizer, prompts, settings)
    stops = tokenizer.stop_ids
    rows = [
        _Row(row, TokenText(tokenizer, prompt), StopStrings(settings.stop), stops)
        for row, prompt in enumerate(ids)
    ]
    return _pieces(model, ids, rows, settings, _Choice(settings.sampling, ids, model, generator))


def prompt_ids(
    model: Decoder, tokenizer: Tokenizer, prompts: Sequence[str], settings: Settings
) -> list[list[int]]:
    """Return the tokens that each prompt is read as.

    Raises:
        ValueError: a prompt and its new tokens exceed the model's positions, or the tokenizer has
            tokens that the model does not.

    """
    if tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"Expected a tokenizer of at most {model.vocab_size} tokens, got "
            f"{tokenizer.vocab_size}. Use the one of the model's own folder."
        )
    before = [tokenizer.begin_of_text_id] if settings.begin_of_text else []
    ids = [before + encoded for encoded in tokenizer.encode(prompts)]
    for index, prompt in enumerate(ids):
        if len(prompt) + settings.max_new_tokens > model.max_positions:
            raise ValueError(
                f"Expected at most {model.max_positions} tokens of prompt and text, got "
                f"{len(prompt)} + {settings.max_new_tokens} for prompt {index + 1}. Shorten the "
                "prompt or lower max_new_tokens."
            )
    return ids


def _pieces(
    model: Decoder, ids: list[list[int]], rows: list["_Row"], settings: Settings, choice: "_Choice"
) -> Iterator[Piece]:
    if not ids:
        return
    lengths = [len(prompt) for prompt in ids]
    room = max(lengths) + settings.max_new_tokens
    cache = KeyValueCache(model.config, lengths, room, model.embedding)
    logits_BV = _read_prompts(model, cache, ids, settings.activation)
    for left in reversed(range(settings.max_new_tokens)):
        token_B = choice.next(logits_BV)
        pieces = [
            row.take(token, last=not left)
            for row, token in zip(rows, token_B.tolist(), strict=True)
        ]
        yield from pieces
        kept = [index for index, piece in enumerate(pieces) if piece.finish is None]
        if not kept:
            return
        if len(kept) < len(rows):
            cache.keep(kept)
            choice.keep(kept)
            rows, token_B = [rows[index] for index in kept], token_B[kept]
        logits_BV = _read_token(model, cache, token_B, settings.activation)


@torch.inference_mode()
def _read_prompts(
    model: Decoder, cache: KeyValueCache, ids: list[list[int]], activation: Activation
) -> Tensor:
    """Return the logits after each row's last token, [B, V]; padding lies behind it, unseen."""
    longest = max(cache.lengths)
    padded = [prompt + [0] * (longest - len(prompt)) for prompt in ids]
    device = model.embedding.device
    hidden_BTD = model.read_on(torch.tensor(padded, device=device), cache, activation)
    last_B = torch.tensor(cache.lengths, device=device) - 1
    hidden_BD = hidden_BTD[torch.arange(len(ids), device=device), last_B]
    return ops.linear(hidden_BD, model.head).float()


@torch.inference_mode()
def _read_token(
    model: Decoder, cache: KeyValueCache, token_B: Tensor, activation: Activation
) -> Tensor:
    hidden_B1D = model.read_on(token_B[:, None], cache, activation)
    return ops.linear(hidden_B1D.squeeze(1), model.head).float()


class _Row:
    """One prompt's text so far."""

    def __init__(
        self, row: int, text: TokenText, stop: StopStrings, end_ids: tuple[int, ...]
    ) -> None:
        self._row, self._text, self._stop, self._end_ids = row, text, stop, end_ids

    def take(self, token: int, *, last: bool) -> Piece:
        """Add a token; `last` says that no other may follow."""
        ended = token in self._end_ids
        text, stopped = self._stop.add("" if ended else self._text.add(token))
        if not stopped and (ended or last):
            tail, stopped = self._stop.add(self._text.close())
            text += tail if stopped else tail + self._stop.close()
        finish = None
        if stopped:
            finish = Finish.STOP
        elif ended or last:
            finish = Finish.END_OF_TEXT if ended else Finish.LENGTH
        return Piece(self._row, token, text, finish)


class _Choice:
    """Chooses the next token of every row that is still going."""

    def __init__(
        self,
        sampling: Sampling,
        ids: list[list[int]],
        model: Decoder,
        generator: torch.Generator | None,
    ) -> None:
        self._sampling = sampling
        self._generators = [_own_generator(generator) for _ in ids] if generator else []
        self._seen_BV: Tensor | None = None
        if sampling.repetition_penalty != 1:
            self._seen_BV = model.embedding.new_zeros(len(ids), model.vocab_size, dtype=torch.bool)
            for seen_V, prompt in zip(self._seen_BV, ids, strict=True):
                seen_V[torch.tensor(prompt)] = True

    @torch.inference_mode()
    def next(self, logits_BV: Tensor) -> Tensor:
        """Return a token per row, int64 [B]."""
        if self._seen_BV is not None:
            logits_BV = penalise(logits_BV, self._seen_BV, self._sampling.repetition_penalty)
        if self._sampling.temperature == 0:
            token_B = logits_BV.argmax(-1)
        else:
            token_B = draw(distribution(logits_BV, self._sampling), self._generators)
        if self._seen_BV is not None:
            self._seen_BV.scatter_(1, token_B[:, None], True)
        return token_B

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        if self._generators:
            self._generators = [self._generators[row] for row in rows]
        if self._seen_BV is not None:
            self._seen_BV = self._seen_BV[rows]


def _own_generator(source: torch.Generator) -> torch.Generator:
    """A row's own generator, so that its draws do not depend on how many rows there are."""
    seed = int(torch.randint(2**63 - 1, (1,), generator=source))
    return torch.Generator().manual_seed(seed)


def _finish(piece: Piece) -> Finish:
    assert piece.finish is not None, "every row ends"
    return piece.finish
