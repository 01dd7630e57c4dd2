"""The peer of `benchmarks.clipping`: Opacus, on a dense decoder of plain layers as it wants them.

Shapes: B sequences, T positions, D hidden, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import ModelConfig
from models.layers import Rotary
from privacy.dp.clipping import Chunk

Step = Callable[[], object]
CLIP = 1.0
"""The norm that both clip to."""


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
