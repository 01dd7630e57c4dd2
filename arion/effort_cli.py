"""`arion model generate --effort`: several answers to each prompt, the likeliest of them chosen."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import typer

from arion.progress import Stage, make_progress
from models.chat import Chat
from models.decoder import Decoder
from models.effort.judges import Check, Judge
from models.effort.spending import Asked, Chosen, Draw, Effort, spend
from models.effort.verifier import load_verifier
from models.generate import Settings, generate, prompt_ids
from models.tokenizer import Tokenizer

_MOST_DRAWS = 1000
_AUTO = "auto"


@dataclass(frozen=True)
class EffortOptions:
    """What the command line says of effort, as it was given."""

    effort: str | None
    verifier: Path | None
    check: str | None
    check_timeout_s: float
    budget: int | None
    revise: str | None

    def checked(self, batch: int, temperature: float) -> tuple[Effort, Judge] | None:
        """Return how much is drawn and who judges it; None without `--effort`.

        Args:
            batch: prompts read together. temperature: that answers are drawn at.

        Raises:
            ValueError: options that contradict each other, or a judge that cannot be used.

        """
        if self.effort is None:
            self._refuse_alone()
            return None
        if (self.verifier is None) == (self.check is None):
            got = "neither" if self.verifier is None else "both"
            raise ValueError(
                f"Expected --verifier or --check with --effort, got {got}. Give one: something has "
                "to tell a right answer."
            )
        effort, judge = Effort(self._draws(), self.budget, batch), self._judge()
        if temperature == 0 and self.revise is None:
            raise ValueError(
                "Expected temperature above 0 with --effort, got 0: all answers would be equal. "
                "Set --temperature."
            )
        return effort, judge

    def _judge(self) -> Judge:
        if self.verifier is None:
            return Check(tuple(shlex.split(self.check or "")), self.check_timeout_s)
        verifier = load_verifier(self.verifier)
        verifier.scores("", [""])  # one that asks for sources is refused before any work
        return verifier

    def _draws(self) -> int | None:
        if self.effort == _AUTO:
            return None
        if self.effort is None or not self.effort.isdecimal():
            raise ValueError(f"Expected --effort auto or a number, got {self.effort}. Correct it.")
        if int(self.effort) > _MOST_DRAWS:
            raise ValueError(
                f"Expected at most {_MOST_DRAWS} answers to each prompt with --effort, got "
                f"{self.effort}. Give fewer, or auto with --token-budget."
            )
        return int(self.effort)

    def _refuse_alone(self) -> None:
        for name in ("verifier", "check", "budget", "revise"):
            if getattr(self, name) is not None:
                said = "token-budget" if name == "budget" else name
                raise ValueError(f"Expected --effort with --{said}, got none. Add it.")


@dataclass(frozen=True)
class ModelSampler:
    """Draws answers from a model; with `revise`, every second one in view of the best so far.

    A revision's prompt is the prompt, the best answer and `revise`: one text, or turns of a chat.
    Where that leaves no room for an answer, a fresh one is drawn.
    """

    model: Decoder
    tokenizer: Tokenizer
    prompts: tuple[str, ...]
    settings: Settings
    generator: torch.Generator
    revise: str | None = None
    chat: Chat | None = None

    def __post_init__(self) -> None:
        # Nothing is generated before every prompt is checked.
        texts = [as_read(prompt, chat=self.chat) for prompt in self.prompts]
        prompt_ids(self.model, self.tokenizer, texts, self.settings)

    def __call__(self, asked: Sequence[Asked]) -> list[Draw]:
        """See `models.effort.spending.Sampler`."""
        read = [self._prompt(each) for each in asked]
        texts = [text for text, _ in read]
        found = generate(self.model, self.tokenizer, texts, self.settings, self.generator)
        return [
            Draw(each.text, len(each.tokens), revised)
            for each, (_, revised) in zip(found, read, strict=True)
        ]

    def _prompt(self, asked: Asked) -> tuple[str, bool]:
        prompt = self.prompts[asked.index]
        if self.revise is None or asked.best is None or len(asked.answers) % 2 == 0:
            return as_read(prompt, chat=self.chat), False
        longer = as_read(prompt, asked.answers[asked.best].text, self.revise, chat=self.chat)
        tokens = 1 + len(next(iter(self.tokenizer.encode([longer]))))
        fits = tokens + self.settings.max_new_tokens <= self.model.max_positions
        return (longer, True) if fits else (as_read(prompt, chat=self.chat), False)


def as_read(*turns: str, chat: Chat | None) -> str:
    """Return turns as a model reads them: one after the other, or as the chat's template says."""
    return "".join(turns) if chat is None else chat.render(turns)


def complete_with_effort(
    sampler: ModelSampler, judge: Judge, effort: Effort, seed: int, *, as_json: bool
) -> None:
    """Draw, choose and print."""
    progress = make_progress()
    try:
        chosen = spend(
            sampler.prompts, sampler, judge, effort, sampler.settings.max_new_tokens,
            Stage(progress, "draws"),
        )  # fmt: skip
    finally:
        progress.close()
    if as_json:
        drawn = sampler.settings.sampling.temperature > 0
        typer.echo(_json(sampler.prompts, chosen, seed if drawn else None))
        return
    for number, (prompt, each) in enumerate(zip(sampler.prompts, chosen, strict=True), 1):
        if len(chosen) > 1:
            typer.echo(f"[{number}] {prompt}")
        typer.echo(each.draws[each.best].text)
        if isinstance(judge, Check) and not any(each.scores):
            typer.echo(
                f"note: none of {len(each.draws)} answers to {prompt[:40]!r} passed the check; the "
                "first is shown.",
                err=True,
            )


def _json(prompts: Sequence[str], chosen: Sequence[Chosen], seed: int | None) -> str:
    listed = [
        {
            "prompt": prompt,
            "text": each.draws[each.best].text,
            "score": each.scores[each.best],
            "draws": [
                {"text": d.text, "tokens": d.tokens, "revised": d.revised, "score": score}
                for d, score in zip(each.draws, each.scores, strict=True)
            ],
        }
        for prompt, each in zip(prompts, chosen, strict=True)
    ]
    tokens = sum(draw.tokens for each in chosen for draw in each.draws)
    found = {"seed": seed, "tokens": tokens, "completions": listed}
    return json.dumps(found, indent=2, ensure_ascii=False)
