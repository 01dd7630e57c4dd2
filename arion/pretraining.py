"""A preset learns from public text: alone, or in several processes that torchrun started.

Beside the model folder that is to come lies a work folder: tokenizer, tokens and the last snapshot.
A run that was stopped goes on from there; the work folder goes when the model folder appears.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from arion.institutions import read_public
from client.home_memory import available_memory
from models.checkpoint import save_model
from models.config import ModelConfig, preset
from models.counts import parameter_counts
from models.decoder import Decoder
from models.durable import put, sync
from models.parallel import ALONE, World, unsharded
from models.pretrain import token_stream, warm_up
from models.snapshot import Snapshot
from models.tokenizer import Tokenizer
from models.training_settings import WarmUp

_TOKENIZER_CHARACTERS = 20_000
_TOKENIZER_DOCUMENTS = 2_500
_STREAM = "stream.safetensors"
_ORDER = "order.json"
_SNAPSHOT = "snapshot.safetensors"
_BYTES_WHOLE, _BYTES_TRAINED = 4, 16  # of a number: as it is made, and with gradient and moments

Progress = Callable[[int, int, float], None]


class PretrainingError(ValueError):
    """A pretraining that cannot begin or go on."""


@dataclass(frozen=True)
class Pretraining:
    """What to train, and on what.

    Attributes:
        preset: name of the shape; a smaller tokenizer makes the model smaller.
        public: files and folders of public text.
        settings: of the training; `settings.steps` is an upper bound.
        passes: how often the text is read at most.
        seed: of first weights and batches; they are public.

    """

    preset: str
    public: tuple[Path, ...]
    settings: WarmUp
    seed: int
    passes: int = 1

    def as_text(self) -> str:
        """All of it, for the comparison with a run that was stopped."""
        facts = {
            "preset": self.preset,
            "public": [str(path.resolve()) for path in self.public],
            "settings": self.settings.model_dump(mode="json"),
            "seed": self.seed,
            "passes": self.passes,
        }
        return json.dumps(facts, indent=2, sort_keys=True) + "\n"


def pretrain(
    order: Pretraining,
    folder: Path,
    progress: Progress = lambda step, steps, loss: None,
    *,
    snapshot_every: int = 500,
    world: World = ALONE,
) -> float:
    """Make `folder` a model folder; every process of `world` calls this.

    Args:
        folder: must not exist; appears whole or not at all.
        progress: called with (step, steps, loss in nats per token).
        snapshot_every: steps from one snapshot to the next.

    Returns:
        Mean loss of the last steps, nats per token.

    Raises:
        PretrainingError: the folder exists, or a stopped run of another order is in the way.
        ValueError: unreadable text, too little of it, or settings that do not fit.

    """
    config = preset(order.preset)
    if world.device.type == "cpu":
        _check_memory(config, order.preset, world)
    work = folder.with_name(folder.name + ".unfinished")
    if world.is_first:
        _prepare(order, folder, work)
    world.from_first()  # the text is read and cut into tokens once
    tokenizer = Tokenizer.load(work)
    stream = load_file(work / _STREAM)["tokens"]
    settings = at_most(order.settings, len(stream), order.passes)
    generator = torch.Generator().manual_seed(order.seed)
    model = Decoder(config.model_copy(update={"vocab_size": tokenizer.vocab_size}), generator)
    loss = warm_up(
        model,
        stream,
        settings,
        generator,
        lambda step, nats: progress(step, settings.steps, nats),
        world=world,
        snapshot=Snapshot(work / _SNAPSHOT, snapshot_every, order.as_text(), world),
    )
    model = model.cpu() if world.size == 1 else unsharded(model)
    if world.is_first:
        save_model(model, tokenizer, folder)
        shutil.rmtree(work)
    world.from_first()
    return loss


def at_most(settings: WarmUp, tokens: int, passes: int = 1) -> WarmUp:
    """Shorten a training to so many passes over the public text.

    Of little text a small model learns the words by heart, and starts worse on any other: on the
    invented federation's 430,000 tokens, 900 steps end at a held-out loss above 7.5 nats, the first
    200 at 6.35 (chance: 7.6).
    """
    most = max(1, passes * tokens // (settings.batch * settings.sequence_length))
    return settings.model_copy(update={"steps": min(settings.steps, most)})


def _check_memory(config: ModelConfig, name: str, world: World) -> None:
    """Refuse a shape whose weights, gradients and moments this machine cannot hold, before all."""
    counts = parameter_counts(config)
    numbers = counts.total - counts.embedding  # which a small tokenizer leaves little of
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes that share this machine
    each = max(_BYTES_WHOLE * numbers, _BYTES_TRAINED * numbers // world.size)
    if each * here > available_memory():
        raise PretrainingError(
            f"Expected {each * here / 1e9:.0f} GB of free memory for {numbers:,} parameters of "
            f"{name}, their gradients and AdamW's moments, got {available_memory() / 1e9:.0f} GB. "
            "Choose a smaller preset, or share the training among machines (torchrun)."
        )


def _prepare(order: Pretraining, folder: Path, work: Path) -> None:
    """Make the work folder, unless this order's is there."""
    if folder.exists():
        raise PretrainingError(f"Expected no {folder} yet, got one. Name another folder.")
    if work.exists():
        if (work / _ORDER).read_text() == order.as_text():
            return
        if (work / _SNAPSHOT).exists():
            raise PretrainingError(
                f"Expected the settings that the stopped run in {work} began with (see {_ORDER} "
                "there), got others. Give those, or delete that folder to begin anew."
            )
        shutil.rmtree(work)  # it never came to a snapshot
    texts = read_public(order.public)
    tokenizer = Tokenizer.train(_sample(texts), preset(order.preset).vocab_size)
    _write(work, order, tokenizer, token_stream(tokenizer, texts))


def _write(work: Path, order: Pretraining, tokenizer: Tokenizer, stream: Tensor) -> None:
    part = work.with_name(work.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tokenizer.save(part)
    save_file({"tokens": stream}, part / _STREAM)
    (part / _ORDER).write_text(order.as_text())
    for path in part.iterdir():
        sync(path)
    put(part, work)


def _sample(texts: Sequence[str]) -> list[str]:
    """Documents spread over all of the public text: merges need no more."""
    stride = max(1, math.ceil(len(texts) / _TOKENIZER_DOCUMENTS))
    return [text[:_TOKENIZER_CHARACTERS] for text in texts[::stride]]
