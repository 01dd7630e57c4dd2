"""Building blocks: linear maps with optional LoRA, RMSNorm, attention with rotary positions.

Shapes: B sequences, T positions, D hidden, H query heads, K key/value heads, F head width,
I inputs, O outputs, R LoRA rank.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import ops
from models.config import ModelConfig


class Linear(nn.Module):
    """A bias-free linear map, with a low-rank update once `add_lora` was called.

    Source: Hu et al. 2021 (arXiv 2106.09685): y = x W^T + (alpha / rank) x A^T B^T.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.lora_A: nn.Parameter | None = None
        self.lora_B: nn.Parameter | None = None
        self.lora_scale = 0.0

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Return [B, T, O]."""
        y_BTO = ops.linear(x_BTI, self.weight)
        if self.lora_A is None or self.lora_B is None:
            return y_BTO
        low_BTR = ops.linear(x_BTI, self.lora_A)
        return y_BTO + ops.linear(self.lora_scale * low_BTR, self.lora_B)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        return ops.rms_norm(x, self.weight, self.eps)


class Rotary(nn.Module):
    """Rotary position embedding, half-rotation layout (Su et al. 2021, arXiv 2104.09864)."""

    cos_TF: Tensor
    sin_TF: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        angle = torch.arange(config.max_positions)[:, None] * config.rope_theta**-exponent
        angle = torch.cat((angle, angle), -1)
        self.register_buffer("cos_TF", angle.cos().float(), persistent=False)
        self.register_buffer("sin_TF", angle.sin().float(), persistent=False)

    def forward(self, x_BHTF: Tensor) -> Tensor:
        """Rotate each head of positions 0..T-1."""
        positions = x_BHTF.shape[-2]
        first, second = x_BHTF.chunk(2, -1)
        rotated = torch.cat((-second, first), -1)
        cos, sin = self.cos_TF[:positions], self.sin_TF[:positions]
        return x_BHTF * cos.to(x_BHTF) + rotated * sin.to(x_BHTF)


class Attention(nn.Module):
    """Causal grouped-query attention; one fused projection makes queries, keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width = config.heads, config.kv_heads, config.head_dim
        rows = (config.heads + 2 * config.kv_heads) * config.head_dim
        self.qkv = Linear(config.hidden_size, rows)
        self.out = Linear(config.heads * config.head_dim, config.hidden_size)
        normed = config.qk_norm == "head"
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if normed else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if normed else None

    def forward(self, x_BTD: Tensor, rotary: Rotary) -> Tensor:
        """Return [B, T, D]."""
        batch, positions, _ = x_BTD.shape
        heads = self.qkv(x_BTD).view(batch, positions, -1, self.width)
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        y_BHTF = F.scaled_dot_product_attention(
            rotary(q.transpose(1, 2)),
            rotary(k.transpose(1, 2)),
            v.transpose(1, 2),
            is_causal=True,
            enable_gqa=self.heads != self.kv_heads,
        )
        y: Tensor = self.out(y_BHTF.transpose(1, 2).reshape(batch, positions, -1))
        return y
