"""The decoding benchmark: both sides do the same work, and the limit counts what is read."""

from pathlib import Path

import pytest
import torch

from benchmarks.generate import bytes_per_step, decode, transformers_decoder, write_random
from models.checkpoint import load_model
from models.config import ModelConfig
from models.counts import parameter_counts

CONFIG = ModelConfig(
    vocab_size=300, hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, experts=6,
    experts_per_token=2, expert_hidden_size=24, max_positions=64,
)  # fmt: skip
PROMPTS = ["The patient", "ward", "seen on", "at ten"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random(CONFIG, tmp_path_factory.mktemp("models") / "m")


def test_both_generate_the_same_tokens(folder: Path) -> None:
    pytest.importorskip("transformers")
    model, tokenizer = load_model(folder)
    ours = decode(model, tokenizer, PROMPTS, 12)
    theirs = transformers_decoder(folder, tokenizer, PROMPTS, 12)()
    assert torch.equal(ours.token_BT, theirs.token_BT)
    assert ours.token_BT.shape == (4, 12)
    assert ours.seconds > 0 < theirs.seconds


def test_the_limit_reads_the_chosen_experts_once(folder: Path) -> None:
    model, tokenizer = load_model(folder)
    counts = parameter_counts(CONFIG)
    one = decode(model, tokenizer, PROMPTS[:1], 12).token_BT
    assert bytes_per_step(model, tokenizer, PROMPTS[:1], one) == 4 * counts.active
    four = decode(model, tokenizer, PROMPTS, 12).token_BT
    assert 4 * counts.active < bytes_per_step(model, tokenizer, PROMPTS, four) <= 4 * counts.total
