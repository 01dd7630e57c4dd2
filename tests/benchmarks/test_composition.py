"""How the composition study measures: averages against their definitions, over real rows."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.composition_study import mean_output_losses, target_logs, weight_average
from models.config import ModelConfig
from models.decoder import Decoder
from models.evaluate import evaluate
from models.tokenizer import Tokenizer

CONFIG = ModelConfig(
    vocab_size=300, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, experts=4,
    experts_per_token=2, expert_hidden_size=24, max_positions=128, initializer_range=0.2,
)  # fmt: skip
TEXTS = ["A first text of some words.", "And a second one, which is a little longer than it was."]


@pytest.fixture(scope="module")
def models() -> list[Decoder]:
    return [Decoder(CONFIG, torch.Generator().manual_seed(seed)) for seed in range(3)]


def test_losses_are_those_of_evaluate(models: list[Decoder]) -> None:
    tokenizer = Tokenizer.train(TEXTS, 300)
    rows = [found[0] for found in tokenizer.rows(TEXTS, 128, 1)]
    found = mean_output_losses([target_logs(models[0], {"text": rows})])
    assert found["text"] == pytest.approx(evaluate(models[0], rows, 128).nats_per_token, rel=1e-5)


def test_outputs_are_averaged_as_probabilities(models: list[Decoder]) -> None:
    tokenizer = Tokenizer.train(TEXTS, 300)
    rows = [found[0] for found in tokenizer.rows(TEXTS, 128, 1)]
    found = mean_output_losses([target_logs(model, {"text": rows}) for model in models])
    nats = []
    for row in rows:
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            probabilities = torch.stack([model(ids[:, :-1]).softmax(-1) for model in models])
        nats.append(F.nll_loss(probabilities.mean(0)[0].log(), ids[0, 1:], reduction="none"))
    assert found["text"] == pytest.approx(float(torch.cat(nats).mean()), rel=1e-5)


def test_weights_are_averaged(models: list[Decoder]) -> None:
    average = weight_average(models)
    for mean, *each in zip(average.parameters(), *(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(mean, sum(each) / 3)
