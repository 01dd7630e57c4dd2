"""The model a simulation starts from: a given folder, or a preset warmed up on public text."""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from arion.institutions import read_public
from arion.run_file import ModelSection, RunFileError
from models.checkpoint import save_model
from models.config import preset
from models.decoder import Decoder
from models.folders import open_model
from models.pretrain import WarmUp, token_stream, warm_up
from models.tokenizer import Tokenizer

_TOKENIZER_CHARACTERS = 20_000
_TOKENIZER_DOCUMENTS = 2_500

Progress = Callable[[int, int, float], None]


def prepare_base(
    folder: Path,
    section: ModelSection,
    public: Sequence[Path],
    seed: int,
    progress: Progress = lambda step, steps, loss: None,
) -> None:
    """Make `folder` a model folder, unless it is one already (a run that is resumed).

    Args:
        folder: appears whole or not at all.
        section: which base, and how it is warmed up.
        public: files and folders of public text; needed for a preset.
        seed: of first weights and warm-up; they are public.
        progress: called with (step, steps, loss in nats per token).

    Raises:
        CheckpointError, RunFileError, DataError: a base that cannot be had.

    """
    if folder.exists():
        return
    given = Path(section.base)
    if given.is_dir():
        open_model(given)  # refuse a damaged folder before anything is copied
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(given, part)
        part.rename(folder)
        return
    if not public:
        raise RunFileError(
            "Expected public text for the tokenizer and the warm-up, got none. Name files or "
            "folders with --public, or start from a model folder with --model."
        )
    _warm_up_preset(folder, section, read_public(public), seed, progress)


def _warm_up_preset(
    folder: Path, section: ModelSection, texts: Sequence[str], seed: int, progress: Progress
) -> None:
    config = preset(section.base)
    tokenizer = Tokenizer.train(_sample(texts), config.vocab_size)
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(config.model_copy(update={"vocab_size": tokenizer.vocab_size}), generator)
    stream = token_stream(tokenizer, texts)
    settings = at_most_one_pass(section.warm_up, len(stream))
    warm_up(
        model,
        stream,
        settings,
        generator,
        lambda step, loss: progress(step, settings.steps, loss),
    )
    save_model(model, tokenizer, folder)


def at_most_one_pass(settings: WarmUp, tokens: int) -> WarmUp:
    """Shorten a warm-up to one pass over the public text.

    Of little text a small model learns the words by heart, and starts worse on any other: on the
    invented federation's 430,000 tokens, 900 steps end at a held-out loss above 7.5 nats, the first
    200 at 6.35 (chance: 7.6).
    """
    most = max(1, tokens // (settings.batch * settings.sequence_length))
    return settings.model_copy(update={"steps": min(settings.steps, most)})


def _sample(texts: Sequence[str]) -> list[str]:
    """Documents spread over all of the public text: merges need no more."""
    stride = max(1, math.ceil(len(texts) / _TOKENIZER_DOCUMENTS))
    return [text[:_TOKENIZER_CHARACTERS] for text in texts[::stride]]
