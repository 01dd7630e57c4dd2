"""The model of the variants benchmark: 12.7M parameters, trained on five domains of real text.

    python -m benchmarks.variants_model WORK      # 22 minutes

It goes on after a stop. WORK/model is a model folder; the held-out text of each domain is read anew
from the data sets (benchmarks.composition_data), whose split never changes.
"""

import argparse
import os
from pathlib import Path

import torch

from arion.progress import make_progress
from benchmarks.composition_data import Texts, read_texts, streams
from models.checkpoint import save_model
from models.config import ModelConfig, preset
from models.decoder import Decoder
from models.pretrain import warm_up
from models.snapshot import Snapshot
from models.tokenizer import Tokenizer
from models.training_settings import WarmUp

SETTINGS = WarmUp(steps=1600, batch=16, sequence_length=128, learning_rate=3e-3)
_DOMAIN_TOKENS = 700_000
_TOKENIZER_CHARACTERS = 1_500_000


def data_folder() -> Path:
    """Return the folder of data sets."""
    root = Path(__file__).parents[1] / os.environ.get("ARION_SHARED", "../shared")
    return root.resolve() / "data"


def train(work: Path, texts: Texts, settings: WarmUp = SETTINGS) -> None:
    """Write WORK/model unless it is there."""
    if (work / "model").exists():
        return
    tokenizer = Tokenizer.train(_sample(texts), preset("tiny").vocab_size)
    parts = streams(texts.train, tokenizer).values()
    stream = torch.cat([part[:_DOMAIN_TOKENS] for part in parts])
    generator = torch.Generator().manual_seed(0)
    model = Decoder(_config(tokenizer.vocab_size), generator)
    work.mkdir(parents=True, exist_ok=True)
    snapshot = Snapshot(work / "snapshot.safetensors", 200, settings.model_dump_json())
    progress = make_progress()
    progress.stage("training", settings.steps)
    warm_up(
        model,
        stream,
        settings,
        generator,
        lambda step, nats: progress.step(step, f"{nats:.3f} nats per token"),
        snapshot=snapshot,
    )
    progress.close()
    save_model(model, tokenizer, work / "model")


def _config(vocabulary: int) -> ModelConfig:
    """`tiny` with experts of 256, which every block format divides."""
    sizes = {"vocab_size": vocabulary, "expert_hidden_size": 256}
    return preset("tiny").model_copy(update=sizes)


def _sample(texts: Texts) -> list[str]:
    """As much of each domain."""
    chosen = []
    for documents in texts.train.values():
        left = _TOKENIZER_CHARACTERS
        for text in documents:
            chosen.append(text[:left])
            left -= len(chosen[-1])
            if left <= 0:
                break
    return chosen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    train(parser.parse_args().work, read_texts(data_folder()))
