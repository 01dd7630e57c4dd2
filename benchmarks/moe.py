"""How fast the sparse layer trains, and what a training step with a large vocabulary holds.

Speed: tokens per second, forward and backward, of one sparse block. Peer: the fastest experts
implementation that transformers has for the same block and weights. Limits: a dense SwiGLU block of
equal active FLOPs; and the block's matrix products alone, run as fast as this device multiplies.

On a GPU also the share that the block makes of the rate of a large product (MFU).

Memory: the largest sum of live tensors that a step of cross-entropy over V = 100,352 allocated.
Limit: torch's cross-entropy of all logits.

On CPU: one thread, fp32, CPU time. On a GPU, where torch sees one: bf16, wall time, synchronised.

Shapes: N tokens, D hidden, G expert hidden width, E experts, K experts per token, V vocabulary.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Row, context, interleave, main, paired_ratio, peak_mib
from models.config import ModelConfig
from models.cross_entropy import token_cross_entropy
from models.experts import SparseExperts
from models.language_model import IGNORED

Step = Callable[[], object]

OURS, DENSE, PRODUCTS = "arion", "dense FFN of equal active FLOPs", "matrix products alone"
TRANSFORMERS = ("eager", "grouped_mm", "batched_mm")
# batched_mm copies the weights of every slot: it does not fit where slots are many.
MOST_BATCHED_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Size:
    """One block: D, G, E, K and the tokens of a step."""

    name: str
    hidden: int
    width: int
    experts: int
    per_token: int
    tokens: int

    def flops(self) -> int:
        """Multiply-adds times two of all products, forward and backward."""
        return 3 * 2 * 3 * self.tokens * self.per_token * self.hidden * self.width

    def batched_bytes(self) -> int:
        """What transformers' batched_mm copies of the weights, fp32."""
        return 4 * 3 * self.tokens * self.per_token * self.hidden * self.width


CPU_SIZES = (
    Size("few broad experts", 512, 1024, 8, 2, 4096),
    Size("many narrow experts", 512, 256, 64, 8, 4096),
)
QUICK_SIZES = (Size("few broad experts, short", 256, 512, 8, 2, 2048),)
GPU_SIZES = (
    Size("few broad experts", 2048, 4096, 8, 2, 16384),
    Size("many narrow experts", 2048, 768, 64, 8, 16384),
)


def run(quick: bool) -> Iterator[Row]:
    """Yield speed rows of every size, then the memory rows."""
    torch.set_num_threads(1)
    is_gpu = torch.cuda.is_available()
    repetitions = 5 if quick else 25
    for size in QUICK_SIZES if quick else GPU_SIZES if is_gpu else CPU_SIZES:
        yield from speed_rows(size, torch.device("cuda" if is_gpu else "cpu"), repetitions)
    yield from memory_rows(512 if quick else 2048)


def speed_rows(size: Size, device: torch.device, repetitions: int) -> Iterator[Row]:
    """Yield our tokens per second over the fastest peer and over both limits."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    steps = layer_steps(size, device, dtype)
    seconds = interleave(steps, repetitions, time.perf_counter if device.type == "cuda" else
                         time.process_time)  # fmt: skip
    middle = {name: statistics.median(found) for name, found in seconds.items()}
    fastest = min((n for n in middle if n.startswith("transformers")), key=middle.__getitem__)
    details = context(
        ["torch", "transformers"],
        size=asdict(size),
        device=device.type,
        dtype=str(dtype),
        repetitions=repetitions,
        flops_per_second=size.flops() / middle[OURS],
        seconds=middle,
    )
    for limit in (DENSE, PRODUCTS):
        yield Row(
            f"forward + backward, {size.name}",
            size.tokens / middle[OURS],
            "tokens/s",
            fastest,
            size.tokens / middle[fastest],
            paired_ratio(seconds[fastest], seconds[OURS]),
            limit,
            size.tokens / middle[limit],
            paired_ratio(seconds[limit], seconds[OURS]),
            details,
        )
    if device.type == "cuda":
        rate, most = size.flops() / middle[OURS], matrix_rate(device, dtype)
        yield Row(
            f"matrix rate, {size.name}",
            rate / 1e12,
            "TFLOP/s",
            limit="a product of 8192^3",
            limit_value=most / 1e12,
            ratio_to_limit=rate / most,
            context=details,
        )


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of a large square product: what the device can do."""
    side = 8192
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def step() -> None:
        for _ in range(10):
            torch.mm(left, right)
        torch.cuda.synchronize()

    seconds = interleave({"": step}, 5, time.perf_counter)[""]
    return 10 * 2 * side**3 / statistics.median(seconds)


def layer_steps(size: Size, device: torch.device, dtype: torch.dtype) -> dict[str, Step]:
    """Return a forward and backward step of each implementation, all of the same weights."""
    generator = torch.Generator().manual_seed(0)
    block = our_block(size, generator).to(device, dtype)
    x_1ND = torch.randn(1, size.tokens, size.hidden, generator=generator).to(device, dtype)
    grad_1ND = torch.randn(1, size.tokens, size.hidden, generator=generator).to(device, dtype)

    def trained(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Step:
        def step() -> None:
            module.zero_grad(set_to_none=True)
            x = x_1ND.clone().requires_grad_()
            forward(x).backward(grad_1ND)
            if device.type == "cuda":
                torch.cuda.synchronize()

        return step

    steps = {OURS: trained(block, lambda x: block(x)[0])}
    for name in TRANSFORMERS:
        if name == "batched_mm" and size.batched_bytes() > MOST_BATCHED_BYTES:
            continue
        peer = transformers_block(size, block, name).to(device, dtype)
        steps[f"transformers {name}"] = trained(peer, peer)
    dense = DenseBlock(size, generator).to(device, dtype)
    steps[DENSE] = trained(dense, dense)
    steps[PRODUCTS] = products_alone(size, device, dtype)
    return steps


def our_block(size: Size, generator: torch.Generator) -> SparseExperts:
    """Return our sparse block with random weights; the router spreads tokens over all experts."""
    config = ModelConfig(
        vocab_size=2, hidden_size=size.hidden, layers=1, heads=1, kv_heads=1, head_dim=2,
        experts=size.experts, experts_per_token=size.per_token, expert_hidden_size=size.width,
        max_positions=2,
    )  # fmt: skip
    block = SparseExperts(config)
    for parameter in block.parameters():
        parameter.data.normal_(0, 0.02, generator=generator)
    return block


def transformers_block(size: Size, ours: SparseExperts, implementation: str) -> nn.Module:
    """Return transformers' block with our weights and the named experts implementation."""
    from transformers import Qwen3MoeConfig  # noqa: PLC0415  (a peer, not needed elsewhere)
    from transformers.models.qwen3_moe.modeling_qwen3_moe import (  # noqa: PLC0415
        Qwen3MoeSparseMoeBlock,
    )

    config = Qwen3MoeConfig(
        hidden_size=size.hidden, moe_intermediate_size=size.width, num_experts=size.experts,
        num_experts_per_tok=size.per_token, norm_topk_prob=True,
    )  # fmt: skip
    config._experts_implementation = implementation
    block: nn.Module = Qwen3MoeSparseMoeBlock(config)
    block.gate.weight.data.copy_(ours.router.weight.data)  # type: ignore[union-attr, operator]
    block.experts.gate_up_proj.data.copy_(ours.gate_up.weight.data)  # type: ignore[union-attr, operator]
    block.experts.down_proj.data.copy_(ours.down.weight.data)  # type: ignore[union-attr, operator]
    return block


class DenseBlock(nn.Module):
    """A SwiGLU block as wide as all of a token's experts together."""

    def __init__(self, size: Size, generator: torch.Generator) -> None:
        super().__init__()
        width = size.per_token * size.width
        self.gate_up = nn.Linear(size.hidden, 2 * width, bias=False)
        self.down = nn.Linear(width, size.hidden, bias=False)
        for parameter in self.parameters():
            parameter.data.normal_(0, 0.02, generator=generator)

    def forward(self, x_1ND: Tensor) -> Tensor:
        gate, up = self.gate_up(x_1ND).chunk(2, -1)
        y_1ND: Tensor = self.down(F.silu(gate) * up)
        return y_1ND


def products_alone(size: Size, device: torch.device, dtype: torch.dtype) -> Step:
    """Return the dense block's six products, on tensors that are already there."""
    slots, width = size.tokens, size.per_token * size.width
    x, up = (torch.randn(slots, n, device=device, dtype=dtype) for n in (size.hidden, 2 * width))
    mid = torch.randn(slots, width, device=device, dtype=dtype)
    gate_up = torch.randn(2 * width, size.hidden, device=device, dtype=dtype)
    down = torch.randn(size.hidden, width, device=device, dtype=dtype)
    outputs = [torch.empty(s, device=device, dtype=dtype) for s in
               (up.shape, x.shape, mid.shape, x.shape, gate_up.shape, down.shape)]  # fmt: skip
    pairs = ((x, gate_up.T), (mid, down.T), (x, down), (up, gate_up), (up.T, x), (x.T, mid))

    def step() -> None:
        for (left, right), output in zip(pairs, outputs, strict=True):
            torch.mm(left, right, out=output)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def memory_rows(tokens: int) -> Iterator[Row]:
    """Yield peak memory and time of the output layer's loss, trained and frozen."""
    vocabulary, hidden = 100_352, 256
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(tokens, hidden, generator=generator, requires_grad=True)
    head_VD = (0.02 * torch.randn(vocabulary, hidden, generator=generator)).requires_grad_()
    target_N = torch.randint(vocabulary, (tokens,), generator=generator)
    losses: Mapping[str, Callable[[], Tensor]] = {
        "chunked": lambda: token_cross_entropy(hidden_ND, head_VD, target_N, IGNORED),
        "plain": lambda: F.cross_entropy(
            hidden_ND @ head_VD.T, target_N, ignore_index=IGNORED, reduction="none"
        ),
    }
    for trained in (True, False):
        head_VD.requires_grad_(trained)
        yield from _loss_rows(losses, (hidden_ND, head_VD), trained)


def _loss_rows(
    losses: Mapping[str, Callable[[], Tensor]], leaves: tuple[Tensor, ...], trained: bool
) -> Iterator[Row]:
    def step_of(loss: Callable[[], Tensor]) -> Step:
        def step() -> None:
            for leaf in leaves:
                leaf.grad = None
            loss().sum().backward()  # type: ignore[no-untyped-call]

        return step

    steps = {name: step_of(loss) for name, loss in losses.items()}
    memory = {name: peak_mib(step) for name, step in steps.items()}
    seconds = interleave(steps, 3)
    tokens, vocabulary = len(leaves[0]), len(leaves[1])
    details: dict[str, Any] = context(["torch"], tokens=tokens, vocabulary=vocabulary)
    label = f"V = {vocabulary}, output matrix {'trained' if trained else 'frozen'}"
    yield Row(
        f"loss memory, {label}", memory["chunked"], "MiB", None, None, None, "plain cross-entropy",
        memory["plain"], memory["chunked"] / memory["plain"], details,
    )  # fmt: skip
    yield Row(
        f"loss time, {label}", statistics.median(seconds["chunked"]), "s", None, None, None,
        "plain cross-entropy", statistics.median(seconds["plain"]),
        paired_ratio(seconds["chunked"], seconds["plain"]), details,
    )  # fmt: skip


if __name__ == "__main__":
    main(run)
