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

Shapes: B sequences, T positions.
"""

import logging
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.clipping_peers import CLIP, DenseDecoder, Step, opacus_ghost, opacus_hooks
from benchmarks.harness import Row, context, interleave, main, paired_ratio, peak_mib
from models import cross_entropy
from models.config import ModelConfig, preset
from models.decoder import Decoder
from models.lora import add_lora
from privacy.dp.clipping import Chunk, add_clipped_gradients, unit_losses
from privacy.dp.records import UnitLayout

OURS, LIMIT = "private", "non-private"
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


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    main(run)
