"""What exact per-unit clipping costs: step time and peak memory of one private step.

Limit: the same model's step without privacy (plain autograd, fresh gradients). Peer: Opacus, hooks
(`GradSampleModule`) and ghost (fast gradient clipping), on a dense decoder of equal shapes, because
it has no rule for stacked experts.

On CPU: fp32, CPU time of one thread. Where torch sees a GPU: a model of 1B parameters there, bf16
activations under fp32 weights (Opacus: bf16 weights too), wall time, synchronised. Steps in turn,
median; a ratio is the median over neighbouring repetitions. Memory is the largest sum of live
tensors that the step allocated, its gradient buffers included, weights not; there the non-private
step adds to buffers too, as with several chunks per step. Noise, optimiser and data are outside the
step.

Shapes: B sequences, T positions, D hidden, V vocabulary.
"""

import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Row, context, interleave, main, paired_ratio, peak_mib
from models import cross_entropy
from models.config import ModelConfig, preset
from models.decoder import Decoder
from models.layers import Rotary
from models.lora import add_lora
from privacy.dp.clipping import Chunk, add_clipped_gradients, unit_losses
from privacy.dp.records import UnitLayout

Step = Callable[[], object]

OURS, LIMIT = "private", "non-private"
CLIP = 1.0
POSITIONS = 128
RANK = 8
SPARSE = ModelConfig(
    vocab_size=8192, hidden_size=256, layers=6, heads=4, kv_heads=4, head_dim=64, experts=8,
    experts_per_token=2, expert_hidden_size=512, max_positions=POSITIONS,
)  # fmt: skip
TRAINED = ("full", "full, router frozen", f"LoRA r={RANK}")


@dataclass(frozen=True)
class Size:
    """A model, and the chunk that a step processes."""

    config: ModelConfig
    sequences: int
    positions: int = POSITIONS
    on_gpu: bool = False

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.on_gpu else "cpu")


SIZES = {"sparse-22M": Size(SPARSE, 16), "nano": Size(preset("nano"), 32)}
GPU_SIZES = {"arion-1.0-1b": Size(preset("arion-1.0-1b"), 16, 1024, on_gpu=True)}


def run(quick: bool) -> Iterator[Row]:
    """Yield the rows: every model size and choice of parameters, then the dense twin."""
    torch.set_num_threads(1)
    repetitions = 5 if quick else 25
    on_gpu = torch.cuda.is_available()
    if on_gpu:  # the limit keeps its logits there, as ours has to
        cross_entropy.CHUNK_BYTES = 2**33
    for name, size in (GPU_SIZES if on_gpu else SIZES).items():
        if quick and name == "sparse-22M":
            continue
        details = {"size": name, "sequences": size.sequences, "repetitions": repetitions}
        for trained in TRAINED:
            job = sparse_job(size, trained)
            yield from rows(f"{name}, {trained}", job, {"trained": trained, **details})
            del job
        job = dense_job(size)
        yield from rows(f"{name} dense twin, full", job, {"trained": "full", **details})


class Job:
    """One model on one chunk, trained with and without privacy.

    Attributes:
        steps: by name, OURS and LIMIT and any peers.
        memory_steps: the same, where LIMIT adds to gradient buffers as OURS does; every step
            allocates its buffers itself, so that all count them.

    """

    def __init__(self, model: Decoder, size: Size, generator: torch.Generator) -> None:
        shape, device = (2, size.sequences, size.positions), size.device
        token_BT, target_BT = torch.randint(
            model.config.vocab_size, shape, generator=generator, device=device
        )
        layout = UnitLayout(torch.arange(size.sequences, device=device), size.sequences)
        present_U = torch.ones(size.sequences, dtype=torch.bool, device=device)
        if size.on_gpu:
            model.compute_dtype = torch.bfloat16
        self.on_gpu = size.on_gpu
        self.model = model
        self.chunk = Chunk(token_BT, target_BT, layout, present_U)
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._sums = self._buffers()
        self.steps: dict[str, Step] = {OURS: self._private, LIMIT: self._non_private}
        self.memory_steps: dict[str, Step] = {
            OURS: lambda: self._clip_into(self._buffers()),
            LIMIT: lambda: self._accumulate_into(self._buffers()),
        }

    def add_peer(self, name: str, step: Step) -> None:
        self.steps[name] = self.memory_steps[name] = step

    def _buffers(self) -> dict[str, Tensor]:
        return {n: torch.zeros_like(p) for n, p in self._parameters.items()}

    def _private(self) -> None:
        for total in self._sums.values():
            total.zero_()
        self._clip_into(self._sums)

    def _clip_into(self, sums: dict[str, Tensor]) -> None:
        add_clipped_gradients(self.model, self.chunk, CLIP, sums)

    def _non_private(self) -> None:
        unit_losses(self.model, self.chunk).sum().backward()  # type: ignore[no-untyped-call]
        self.model.zero_grad(set_to_none=True)

    def _accumulate_into(self, sums: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.grad = sums[name]
        self._non_private()


def rows(label: str, job: Job, details: dict[str, Any]) -> Iterator[Row]:
    """Yield time and memory of the private step, beside the non-private one and every peer."""
    memory = {n: peak_mib(step, on_gpu=job.on_gpu) for n, step in job.memory_steps.items()}
    steps = {name: synchronised(step) for name, step in job.steps.items()}
    clock = time.perf_counter if job.on_gpu else time.process_time
    times = interleave(steps if job.on_gpu else job.steps, details["repetitions"], clock)
    seconds = {name: statistics.median(found) for name, found in times.items()}
    spread = sorted(p / n for p, n in zip(times[OURS], times[LIMIT], strict=True))
    details = {**details, "ratio_to_limit_range": [round(spread[0], 3), round(spread[-1], 3)]}
    fields = context(["torch", "opacus"], threads=torch.get_num_threads(), config=details)
    peers: list[str | None] = [name for name in job.steps if name not in (OURS, LIMIT)]
    for peer in peers or [None]:
        faster = smaller = None
        if peer is not None:
            faster = paired_ratio(times[peer], times[OURS])
            smaller = memory[peer] / memory[OURS]
        yield Row(
            f"step time, {label}", seconds[OURS], "s", peer, seconds.get(peer or ""), faster,
            LIMIT, seconds[LIMIT], paired_ratio(times[OURS], times[LIMIT]), fields,
        )  # fmt: skip
        yield Row(
            f"step memory, {label}", memory[OURS], "MiB", peer, memory.get(peer or ""), smaller,
            LIMIT, memory[LIMIT], memory[OURS] / memory[LIMIT], fields,
        )  # fmt: skip


def synchronised(step: Step) -> Step:
    """Return the step with a wait for the GPU at its end."""

    def waiting() -> None:
        step()
        torch.cuda.synchronize()

    return waiting


def sparse_job(size: Size, trained: str) -> Job:
    """Return our sparse decoder with the named parameters trained."""
    generator = torch.Generator(size.device).manual_seed(0)
    with size.device:
        model = Decoder(size.config, generator)
        if trained.startswith("LoRA"):
            model = model.bfloat16() if size.on_gpu else model  # frozen weights lie in bf16 there
            add_lora(model, RANK, 2.0 * RANK, generator)
    if trained.endswith("frozen"):
        _freeze_routers(model)
    return Job(model, size, generator)


def dense_job(size: Size) -> Job:
    """Return our decoder with one expert, beside Opacus on a dense decoder of equal shapes."""
    config = size.config
    dense = config.model_copy(
        update={
            "experts": 1,
            "experts_per_token": 1,
            "expert_hidden_size": config.experts_per_token * config.expert_hidden_size,
            "kv_heads": config.heads,
            "tie_embeddings": False,  # Opacus cannot clip a tied table
            "qk_norm": "none",
        }
    )
    generator = torch.Generator(size.device).manual_seed(0)
    with size.device:
        model = Decoder(dense, generator)
    _freeze_routers(model)
    job = Job(model, size, generator)
    for name, peer in (("Opacus hooks", opacus_hooks), ("Opacus ghost", opacus_ghost)):
        twin = DenseDecoder(dense).to(size.device, torch.bfloat16 if size.on_gpu else None)
        job.add_peer(name, peer(twin, job.chunk))
    return job


def _freeze_routers(model: Decoder) -> None:
    for name, parameter in model.named_parameters():
        if ".router." in name:
            parameter.requires_grad_(False)


class DenseBlock(nn.Module):
    """Attention and a SwiGLU block of plain `nn.Linear`, as Opacus wants them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, hidden = config.hidden_size, config.expert_hidden_size
        self.heads, self.head_dim = config.heads, config.head_dim
        self.attention_norm = nn.RMSNorm(width, config.rms_norm_eps)
        self.mlp_norm = nn.RMSNorm(width, config.rms_norm_eps)
        self.qkv = nn.Linear(width, 3 * config.heads * config.head_dim, bias=False)
        self.out = nn.Linear(config.heads * config.head_dim, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.rotary = Rotary(config)

    def forward(self, x_BTD: Tensor) -> Tensor:
        batch, positions, _ = x_BTD.shape
        heads = self.qkv(self.attention_norm(x_BTD)).view(batch, positions, 3, self.heads, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.rotary(q), self.rotary(k), v, is_causal=True)
        x_BTD = x_BTD + self.out(y.transpose(1, 2).reshape(batch, positions, -1))
        gate, up = self.gate_up(self.mlp_norm(x_BTD)).chunk(2, -1)
        y_BTD: Tensor = self.down(F.silu(gate) * up)
        return x_BTD + y_BTD


class DenseDecoder(nn.Module):
    """The dense twin: equal shapes and equal mathematics to our decoder with one expert."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.Sequential(*[DenseBlock(config) for _ in range(config.layers)])
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=config.initializer_range)

    def forward(self, token_BT: Tensor) -> Tensor:
        logits_BTV: Tensor = self.head(self.norm(self.blocks(self.embedding(token_BT))))
        return logits_BTV


def opacus_hooks(model: nn.Module, chunk: Chunk) -> Step:
    """Return a step of Opacus' default engine: per-example gradients by hooks."""
    from opacus.grad_sample import GradSampleModule  # noqa: PLC0415
    from opacus.optimizers import DPOptimizer  # noqa: PLC0415

    watched = GradSampleModule(model, loss_reduction="mean")
    optimiser = DPOptimizer(_sgd(model), noise_multiplier=0.0, max_grad_norm=CLIP,
                            expected_batch_size=len(chunk.token_BT))  # fmt: skip

    def step() -> None:
        optimiser.zero_grad()
        logits_BVT = watched(chunk.token_BT).transpose(1, 2)
        loss_B = F.cross_entropy(logits_BVT, chunk.target_BT, reduction="none").mean(1)
        loss_B.mean().backward()  # type: ignore[no-untyped-call]
        optimiser.clip_and_accumulate()

    return step


def opacus_ghost(model: nn.Module, chunk: Chunk) -> Step:
    """Return a step of Opacus' fast gradient clipping: ghost norms and a second backward."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping  # noqa: PLC0415
    from opacus.optimizers import DPOptimizerFastGradientClipping  # noqa: PLC0415
    from opacus.utils.fast_gradient_clipping_utils import (  # noqa: PLC0415
        DPLossFastGradientClipping,
    )

    watched = GradSampleModuleFastGradientClipping(model, max_grad_norm=CLIP, loss_reduction="mean")
    optimiser = DPOptimizerFastGradientClipping(
        _sgd(model), noise_multiplier=0.0, max_grad_norm=CLIP,
        expected_batch_size=len(chunk.token_BT),
    )  # fmt: skip
    criterion = DPLossFastGradientClipping(
        watched, optimiser, nn.CrossEntropyLoss(), loss_reduction="mean"
    )

    def step() -> None:
        optimiser.zero_grad()
        logits_BTV = watched(chunk.token_BT)
        loss = criterion(
            logits_BTV.flatten(0, 1), chunk.target_BT.flatten(), shape=logits_BTV.shape
        )
        loss.backward()
        optimiser.accumulate()

    return step


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.0)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    main(run)
