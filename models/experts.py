"""The sparse feed-forward block: a router and a stack of SwiGLU experts, dropless.

Tokens are sorted by expert and each expert is one matrix product over its own slots. Nothing here
depends on which other sequences share the batch: no capacity, no batch-level balance loss.

Shapes: B sequences, T positions, N = B*T tokens, D hidden, E experts, K experts per token,
M = N*K slots, G expert hidden width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import ops
from models.config import ModelConfig
from models.layers import Linear


@dataclass(frozen=True)
class Routing:
    """Which experts each token chose.

    Attributes:
        expert_BTK: chosen experts. weight_BTK: their weights, summing to 1 over K.
        logits_BTE: the router's fp32 logits.

    """

    expert_BTK: Tensor
    weight_BTK: Tensor
    logits_BTE: Tensor


class GroupedLinear(nn.Module):
    """One bias-free linear map per expert, with an optional low-rank update per expert."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))
        self.lora_A: nn.Parameter | None = None
        self.lora_B: nn.Parameter | None = None
        self.lora_scale = 0.0

    def forward(self, x_MI: Tensor, slots: ops.Slots) -> Tensor:
        """Return [M, O]."""
        y_MO = ops.grouped_linear(x_MI, self.weight, slots)
        if self.lora_A is None or self.lora_B is None:
            return y_MO
        low_MR = ops.grouped_linear(x_MI, self.lora_A, slots)
        return y_MO + ops.grouped_linear(self.lora_scale * low_MR, self.lora_B, slots)


class SparseExperts(nn.Module):
    """Top-k of E SwiGLU experts with renormalised softmax weights (norm_topk_prob)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.experts, self.per_token = config.experts, config.experts_per_token
        hidden, width = config.hidden_size, config.expert_hidden_size
        self.router = Linear(hidden, config.experts)
        self.gate_up = GroupedLinear(config.experts, hidden, 2 * width)
        self.down = GroupedLinear(config.experts, width, hidden)

    def route(self, x_BTD: Tensor) -> Routing:
        """Choose experts in fp32."""
        logits_BTE = self.router(x_BTD).float()
        weight_BTK, expert_BTK = logits_BTE.softmax(-1).topk(self.per_token, -1)
        weight_BTK = weight_BTK / weight_BTK.sum(-1, keepdim=True)
        return Routing(expert_BTK, weight_BTK, logits_BTE)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        """Return ([B, T, D], the routing)."""
        routing = self.route(x_BTD)
        flat_M = routing.expert_BTK.flatten()
        # A stable sort keeps each expert's slots in sequence order: per-sequence segments.
        order_M = flat_M.argsort(stable=True)
        ends = torch.bincount(flat_M, minlength=self.experts).cumsum(0).tolist()
        slots = ops.Slots((0, *ends), order_M // self.per_token, x_BTD.shape[1])
        x_MD = x_BTD.flatten(0, 1).index_select(0, slots.token_M)
        gate_MG, up_MG = self.gate_up(x_MD, slots).chunk(2, -1)
        y_MD = self.down(F.silu(gate_MG) * up_MG, slots)
        y_MD = y_MD * routing.weight_BTK.flatten()[order_M, None].to(y_MD)
        y_ND = torch.zeros_like(x_BTD).flatten(0, 1).index_add(0, slots.token_M, y_MD)
        return y_ND.view_as(x_BTD), routing
