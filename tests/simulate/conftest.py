"""A small run file: an invented federation, a base of a few steps, a few rounds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arion.institutions import read_public
from arion.run_file import RunFile
from arion.synthetic import SyntheticPaths, write_synthetic
from models.checkpoint import save_model
from models.config import ModelConfig
from models.decoder import Decoder
from models.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def invented(tmp_path_factory: pytest.TempPathFactory) -> SyntheticPaths:
    folder = tmp_path_factory.mktemp("invented")
    return write_synthetic(folder, units_per_institution=40, public_documents=80)


@pytest.fixture(scope="session")
def small_base(invented: SyntheticPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of about 20,000 parameters that never saw a step: runs start from it at once."""
    tokenizer = Tokenizer.train(read_public([invented.public_dir]), 320)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=24, layers=1, heads=2, kv_heads=1,
        head_dim=12, experts=3, experts_per_token=2, expert_hidden_size=24, max_positions=64,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(Decoder(config, torch.Generator().manual_seed(3)), tokenizer, folder)
    return folder


@pytest.fixture
def run_values(invented: SyntheticPaths, small_base: Path) -> dict[str, Any]:
    """What RUN.toml would say, as plain values."""
    return {
        "data": {"path": str(invented.private_dir), "evaluate_records": 8,
                 "evaluate_each_round": 4},
        "model": {"base": str(small_base)},
        "training": {"rounds": 3, "expected_batch": 12.0, "sequence_length": 32,
                     "sequences_per_unit": 2},
    }  # fmt: skip


@pytest.fixture
def make_run(run_values: dict[str, Any]) -> Callable[..., RunFile]:
    def make(**sections: Any) -> RunFile:
        values = {name: dict(found) for name, found in run_values.items()}
        for name, changes in sections.items():
            if isinstance(changes, dict):
                values.setdefault(name, {}).update(changes)
            else:
                values[name] = changes
        return RunFile.model_validate(values)

    return make
