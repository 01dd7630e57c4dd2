"""What only a GPU computes: grouped kernels, bf16 products with fp32 sums, clipping on both.

Skipped where torch sees none.
"""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from client.training import LocalTrainer, UnitRows
from models import ops
from models.config import ModelConfig
from models.cross_entropy import nats_of_logits
from models.decoder import Decoder
from models.lora import add_lora
from models.ops import Slots, grouped_linear
from models.tokenizer import Row
from models.training_settings import Recipe
from privacy.dp.clipping import Chunk, add_clipped_gradients
from privacy.dp.plan import PrivateStep
from privacy.dp.records import UnitLayout

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

UNITS = 6
CONFIG = ModelConfig(
    vocab_size=512, hidden_size=128, layers=2, heads=4, kv_heads=2, head_dim=32, experts=4,
    experts_per_token=2, expert_hidden_size=96, max_positions=256, initializer_range=0.1,
)  # fmt: skip


def build(variant: str, dtype: torch.dtype | None) -> Decoder:
    generator = torch.Generator().manual_seed(1)
    model = Decoder(CONFIG.model_copy(update={"tie_embeddings": variant == "tied"}), generator)
    if variant == "lora":
        add_lora(model, 8, 16.0, generator)
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.data.normal_(0, 0.1, generator=generator)
    model.compute_dtype = dtype
    return model


def chunk(
    positions: int, present: list[bool], device: str, seeds: list[int] | None = None
) -> Chunk:
    rows = []
    for seed in seeds or range(UNITS):
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.randint(0, 512, (positions + 1,), generator=generator))
    token = torch.stack(rows).to(device)
    layout = UnitLayout(torch.arange(UNITS, device=device), UNITS)
    return Chunk(token[:, :-1], token[:, 1:], layout, torch.tensor(present, device=device))


def clipped(model: Decoder, batch: Chunk, clip: float) -> tuple[Tensor, Tensor]:
    """Return (norms, the sums as one fp64 vector)."""
    sums = {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.requires_grad}
    norm_U = add_clipped_gradients(model, batch, clip, sums).norm_U
    return norm_U, torch.cat([total.double().flatten() for total in sums.values()])


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("lengths", [[700, 3, 0, 321], [0, 1024, 0, 0]])
def test_the_grouped_kernel_agrees_with_products_in_float64(lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, *lengths]).cumsum(0).tolist()
    x = torch.randn(1024, 128, generator=generator).bfloat16()
    weight = torch.randn(4, 192, 128, generator=generator).bfloat16()
    grad = torch.randn(1024, 192, generator=generator).bfloat16()
    results = []
    for device, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float64)):
        own = [t.to(device, dtype).requires_grad_() for t in (x, weight)]
        slots = Slots.of(offsets, torch.zeros(1024, device=device), 1)
        y = grouped_linear(own[0], own[1], slots)
        y.backward(grad.to(device, dtype))
        results.append((y, own[0].grad, own[1].grad))
    for found, expected in zip(*results, strict=True):
        assert found is not None
        assert expected is not None
        assert relative(found, expected) < 5e-3


@pytest.mark.parametrize("variant", ["tied", "untied", "lora"])
@pytest.mark.parametrize("positions", [8, 200], ids=["factors kept", "gradients kept"])
def test_fp32_clipping_on_a_gpu_equals_the_cpu(variant: str, positions: int) -> None:
    model = build(variant, None)
    norms, vector = clipped(model, chunk(positions, [True] * UNITS, "cpu"), 0.05)
    gpu_norms, gpu_vector = clipped(model.cuda(), chunk(positions, [True] * UNITS, "cuda"), 0.05)
    torch.testing.assert_close(gpu_norms.cpu(), norms, rtol=1e-5, atol=0)
    assert relative(gpu_vector, vector) < 1e-5


@pytest.mark.parametrize("variant", ["tied", "untied", "lora"])
@pytest.mark.parametrize("positions", [8, 200], ids=["factors kept", "gradients kept"])
@pytest.mark.parametrize("clip", [1e-3, 0.05])
def test_bf16_units_stay_within_the_clipping_norm(
    variant: str, positions: int, clip: float
) -> None:
    model = build(variant, torch.bfloat16).cuda()
    for unit in range(UNITS):
        present = [place == unit for place in range(UNITS)]
        length = float(clipped(model, chunk(positions, present, "cuda"), clip)[1].norm())
        assert 0.95 * clip <= length <= 1.001 * clip


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("positions", [8, 200])
def test_a_unit_is_computed_alike_in_whatever_company(
    dtype: torch.dtype | None, positions: int
) -> None:
    """Chunks have one shape, and a row's sums run in one order: other rows change no bit of it."""
    model = build("untied", dtype).cuda()
    everyone = [True] * UNITS
    first, _ = clipped(model, chunk(positions, everyone, "cuda"), 0.05)
    other = chunk(positions, everyone, "cuda", [0, 11, 12, 13, 4, 15])
    second, _ = clipped(model, other, 0.05)
    kept = torch.tensor([0, 4])
    torch.testing.assert_close(first.cpu()[kept], second.cpu()[kept], rtol=0, atol=0)


@pytest.mark.parametrize("vocabulary", [512, 70_001])
def test_the_loss_and_its_gradient_agree_with_float64(vocabulary: int) -> None:
    """Logits, probabilities and gradient share one memory, whatever kernel a GPU takes for them."""
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(64, vocabulary, generator=generator)
    target = torch.randint(vocabulary, (64,), generator=generator)
    exact = logits.double().requires_grad_()
    F.cross_entropy(exact, target, reduction="none").sum().backward()
    leaf = logits.cuda().requires_grad_()
    nats = nats_of_logits(leaf * 1, target.cuda(), -100)
    nats.sum().backward()
    assert relative(nats, F.cross_entropy(exact, target, reduction="none")) < 1e-6
    assert leaf.grad is not None
    assert exact.grad is not None
    assert relative(leaf.grad, exact.grad) < 1e-6


def test_what_a_node_sums_on_a_gpu_is_what_it_sums_on_cpu() -> None:
    generator = torch.Generator().manual_seed(4)
    rows = [
        tuple(
            Row(tuple(torch.randint(512, (41,), generator=generator).tolist()), 0)
            for _ in range(count)
        )
        for count in (1, 2, 1, 2, 2)
    ]
    step = PrivateStep(
        clipping_norm=0.05, noise_multiplier=1.0, sampling_probability=0.5, expected_batch=2.0,
        honest_survivors=2, releases=1, unit="record",
    )  # fmt: skip
    sums = []
    for device in ("cpu", "cuda"):
        recipe = Recipe(sequence_length=40, sequences_per_unit=2)
        model = build("tied", None).to(device)
        trainer = LocalTrainer(model, UnitRows(tuple(rows)), recipe, chunk_sequences=4)
        sums.append(torch.from_numpy(trainer.clipped_sum(np.array([0, 3, 4]), step)))
    assert relative(sums[1], sums[0]) < 1e-5


def test_a_training_step_in_bf16_lowers_the_loss() -> None:
    model = build("tied", torch.bfloat16).cuda()
    batch = chunk(200, [True] * UNITS, "cuda")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(8):
        loss = model.loss(batch.token_BT, batch.target_BT)
        mean = loss.total_B.sum() / loss.tokens_B.sum()
        optimiser.zero_grad()
        mean.backward()
        optimiser.step()
        losses.append(mean.item())
    assert losses[-1] < 0.9 * losses[0]
    assert ops.linear(torch.ones(1, 1, 128).cuda().bfloat16(), model.head).dtype == torch.bfloat16
