"""Building blocks: linear maps with optional LoRA, RMSNorm, attention with rotary positions.

Shapes: B sequences, T positions, D hidden, H query heads, K key/value heads, F head width,
G query heads per key/value head, S cached positions, I inputs, O outputs, R LoRA rank.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import ops
from models.cache import Past
from models.config import ModelConfig

Rotation = Callable[[Tensor], Tensor]


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
        angle_TF = _rotary_angles(config)
        meta = angle_TF.is_meta
        self.register_buffer("cos_TF", angle_TF if meta else angle_TF.cos(), persistent=False)
        self.register_buffer("sin_TF", angle_TF if meta else angle_TF.sin(), persistent=False)

    def forward(self, x_BHTF: Tensor) -> Tensor:
        """Rotate each head of positions 0..T-1."""
        positions = x_BHTF.shape[-2]
        return _rotation(self.cos_TF[:positions], self.sin_TF[:positions])(x_BHTF)

    def at(self, position_B: Tensor) -> Rotation:
        """Return the rotation of each row's single position, for heads [B, H, 1, F]."""
        index_B11 = position_B[:, None, None]
        return _rotation(self.cos_TF[index_B11], self.sin_TF[index_B11])


def _rotation(cos: Tensor, sin: Tensor) -> Rotation:
    """Return the map (a, b) -> (a cos - b sin, b cos + a sin) of the halves of each head."""
    first, second = sin.chunk(2, -1)
    signed = torch.cat((-first, second), -1)

    def rotate(x_BHTF: Tensor) -> Tensor:
        swapped = torch.cat(x_BHTF.chunk(2, -1)[::-1], -1)
        return torch.addcmul(x_BHTF * cos.to(x_BHTF), swapped, signed.to(x_BHTF))

    return rotate


def _rotary_angles(config: ModelConfig) -> Tensor:
    """Angle of each head dimension at each position, in radians, fp32 [T, F].

    On the meta device only the shape: the first arithmetic there makes torch load its compiler's
    decompositions, which takes seconds, and every model that is read is first built there.
    """
    if torch.get_default_device().type == "meta":
        return torch.empty(config.max_positions, config.head_dim)
    position_T = torch.arange(config.max_positions, dtype=torch.float32)
    angle = position_T[:, None] * rotary_frequencies(config)
    return torch.cat((angle, angle), -1)


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """Angle per position of each pair of head dimensions, in radians, fp32 [F / 2].

    All in fp32, in transformers' order of operations: what a model was trained with is what it is
    run with, to the last bit and at the last position.

    Source: Su et al. 2021 (arXiv 2104.09864); scaling, Llama 3.1 (arXiv 2407.21783, section 3.2).
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    plain = 1.0 / config.rope_theta**exponent
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelength = 2 * math.pi / plain
    blend = (scaling.original_max_positions / wavelength - low) / (high - low)
    blended = (1 - blend) * plain / scaling.factor + blend * plain
    long = wavelength > scaling.original_max_positions / low
    short = wavelength < scaling.original_max_positions / high
    return torch.where(short, plain, torch.where(long, plain / scaling.factor, blended))


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

    def forward(self, x_BTD: Tensor, rotary: Rotation, past: Past | None = None) -> Tensor:
        """Return [B, T, D]; with `past`, the new positions are stored and see what is there."""
        batch, positions, _ = x_BTD.shape
        heads = self.qkv(x_BTD).view(batch, positions, -1, self.width)
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q_BHTF, k_BKTF = rotary(q.transpose(1, 2)), rotary(k.transpose(1, 2))
        v_BKTF = v.transpose(1, 2)
        if past is not None:
            past.write(k_BKTF, v_BKTF)
        if past is not None and past.columns.position_B is not None:
            y_BHTF = self._see_past(q_BHTF, past)
        else:
            grouped = self.heads != self.kv_heads
            y_BHTF = F.scaled_dot_product_attention(
                q_BHTF, k_BKTF, v_BKTF, is_causal=True, enable_gqa=grouped
            )
        y: Tensor = self.out(y_BHTF.transpose(1, 2).reshape(batch, positions, -1))
        return y

    def _see_past(self, q_BH1F: Tensor, past: Past) -> Tensor:
        """Attend from one position; query heads that share keys stand where positions would."""
        q_BKGF = q_BH1F.view(len(q_BH1F), self.kv_heads, -1, self.width)
        mask = past.columns.mask_B11S
        y_BKGF = F.scaled_dot_product_attention(q_BKGF, *past.read(), attn_mask=mask)
        return y_BKGF.reshape(q_BH1F.shape)
