"""Public training, evaluation and generation on a GPU give what a CPU gives.

Skipped where torch sees none.
"""

from pathlib import Path

import pytest
import torch

from models.config import ModelConfig
from models.decoder import Decoder
from models.evaluate import evaluate
from models.generate import Settings, generate
from models.parallel import ALONE, World
from models.pretrain import warm_up
from models.sampling import Sampling
from models.snapshot import Snapshot
from models.tokenizer import Tokenizer
from models.training_settings import WarmUp

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. "
CONFIG = ModelConfig(
    vocab_size=300, hidden_size=64, layers=2, heads=4, kv_heads=2, head_dim=16, experts=4,
    experts_per_token=2, expert_hidden_size=64, max_positions=128, initializer_range=0.1,
)  # fmt: skip
SETTINGS = WarmUp(steps=6, batch=4, sequence_length=48, learning_rate=3e-3)
STREAM = torch.arange(4000, dtype=torch.int32) * 7 % 290


def on_gpu() -> World:
    return World(device=torch.device("cuda"))


def trained(world: World, precision: str = "fp32") -> tuple[Decoder, list[float]]:
    model, losses = Decoder(CONFIG, torch.Generator().manual_seed(0)), []
    settings = SETTINGS.model_copy(update={"precision": precision})
    generator = torch.Generator().manual_seed(1)
    warm_up(
        model, STREAM, settings, generator, lambda _, loss: losses.append(loss), world=world
    )  # fmt: skip
    return model, losses


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.05)])
def test_public_training_takes_the_same_steps(precision: str, tolerance: float) -> None:
    expected = trained(ALONE)[1]
    model, losses = trained(on_gpu(), precision)
    assert all(weight.is_cuda and weight.dtype == torch.float32 for weight in model.parameters())
    assert losses == pytest.approx(expected, abs=tolerance)


def test_public_training_goes_on_from_a_snapshot(tmp_path: Path) -> None:
    expected, _ = trained(on_gpu())
    for steps in (3, 6):
        model = Decoder(CONFIG, torch.Generator().manual_seed(0))
        snapshot = Snapshot(tmp_path / "snapshot.safetensors", 3, "run")
        seen: list[int] = []

        def tell(step: int, _: float, seen: list[int] = seen, steps: int = steps) -> None:
            seen.append(step)
            if step == steps == 3:
                raise KeyboardInterrupt

        try:
            warm_up(
                model, STREAM, SETTINGS, torch.Generator().manual_seed(1), tell,
                world=on_gpu(), snapshot=snapshot,
            )  # fmt: skip
        except KeyboardInterrupt:
            continue
    assert seen == [4, 5, 6]
    for own, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


def test_evaluation_and_generation_agree() -> None:
    tokenizer = Tokenizer.train([TEXT], 300)
    model = Decoder(CONFIG, torch.Generator().manual_seed(0))
    rows = tokenizer.rows([TEXT * 3, TEXT], 64, None)
    flat = [row for found in rows for row in found]
    settings = Settings(16, Sampling(temperature=0.7))
    prompts = ["It was", "the age of"]

    def figures() -> tuple[float, list[tuple[int, ...]]]:
        generator = torch.Generator().manual_seed(3)
        texts = generate(model, tokenizer, prompts, settings, generator)
        return evaluate(model, flat).nats, [text.tokens for text in texts]

    nats, tokens = figures()
    model.cuda()
    gpu_nats, gpu_tokens = figures()
    assert gpu_nats == pytest.approx(nats, rel=1e-5)
    assert gpu_tokens == tokens
