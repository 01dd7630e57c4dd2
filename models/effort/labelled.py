"""Labelled answers: what a verifier is trained and measured on."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.effort.features import Read, read


@dataclass(frozen=True)
class Labelled:
    """One answer, by whom, and whether it is right. `read` is how the features see it."""

    text: str
    correct: bool
    source: str
    read: Read


@dataclass(frozen=True)
class Question:
    """A prompt and the answers that it got."""

    prompt: str
    answers: tuple[Labelled, ...]


class LabelsError(ValueError):
    """A file of labelled answers that cannot be used."""


def load_labelled(file: Path) -> list[Question]:
    """Read one JSON object per line: `{"question", "solutions": [{"solution", "correct"}]}`.

    A solution may say which `model` wrote it. The file may be gzipped (`.gz`).

    Raises:
        LabelsError: another form, an empty file, or questions of different numbers of answers.

    """
    questions = [_question(line, where) for where, line in _lines(file)]
    counts = {len(question.answers) for question in questions}
    if len(counts) != 1:
        raise LabelsError(
            f"Expected the same number of answers to every question of {file}, got "
            f"{sorted(counts) or 'no question'}. Leave out the others."
        )
    return questions


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{file}:{number}", line
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise LabelsError(
            f"Expected lines of JSON in {file}, got {error}. Give a .jsonl or .jsonl.gz."
        ) from error


def _question(line: str, where: str) -> Question:
    try:
        value = json.loads(line)
        prompt = value["question"]
        answers = tuple(_answer(prompt, each) for each in value["solutions"])
    except (ValueError, TypeError, KeyError) as error:
        raise LabelsError(
            f"{where}: Expected 'question' and 'solutions' with text in 'solution' and true or "
            f"false in 'correct', got {type(error).__name__}. Correct the line."
        ) from error
    if not answers:
        raise LabelsError(f"{where}: Expected at least one solution, got none. Remove the line.")
    return Question(prompt, answers)


def _answer(prompt: Any, value: Any) -> Labelled:
    text, correct, source = value["solution"], value["correct"], value.get("model", "")
    if not (isinstance(prompt, str) and isinstance(text, str) and isinstance(source, str)):
        raise TypeError("text")
    if not isinstance(correct, bool):
        raise TypeError("correct")
    return Labelled(text, correct, source, read(prompt, text))
