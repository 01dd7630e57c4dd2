"""The model a simulation starts from: a given folder, or a preset warmed up on public text."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from arion.pretraining import Pretraining, Progress, pretrain
from arion.run_file import ModelSection, RunFileError
from models.config import preset
from models.folders import open_model

_SNAPSHOT_STEPS = 200


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
    preset(section.base)  # refuse what is neither before it is asked for text
    if not public:
        raise RunFileError(
            "Expected public text for the tokenizer and the warm-up, got none. Name files or "
            "folders with --public, or start from a model folder with --model."
        )
    pretrain(
        Pretraining(section.base, tuple(public), section.warm_up, seed),
        folder,
        progress,
        snapshot_every=_SNAPSHOT_STEPS,
    )
