"""The sparse feed-forward block: a router and a stack of SwiGLU experts, dropless.

Tokens are sorted by expert and each expert is one matrix product over its own slots. Nothing here
depends on which other sequences share the batch: no capacity, no batch-level balance loss.

Shapes: B sequences, T positions, N = B*T tokens, D hidden, E experts, K experts per token,
M slots (at most N*K), G expert hidden width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import ops
from models.config import ModelConfig
from models.dispatch import combine, gather, make_dispatch, swiglu


@dataclass(frozen=True)
class Activation:
    """How many experts a token uses; chosen anew for every call, without touching a weight.

    A token keeps expert j of its best `experts_per_token` where w_j >= threshold * w_1, and the
    kept weights are renormalised. Only the token's own weights decide, so nothing couples two
    sequences.

    Attributes:
        experts_per_token: k_max >= 1; None for the model's own number.
        threshold: tau in [0, 1]; 0 keeps all k_max, 1 keeps the best one (and exact ties).

    Raises:
        ValueError: out of range.

    """

    experts_per_token: int | None = None
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.experts_per_token is not None and self.experts_per_token < 1:
            raise ValueError(
                f"Expected experts_per_token >= 1, got {self.experts_per_token}. "
                "A token needs one expert at least."
            )
        if not 0 <= self.threshold <= 1:
            raise ValueError(
                f"Expected a threshold between 0 and 1, got {self.threshold}. It is a share of "
                "the best expert's weight."
            )


ALL_EXPERTS = Activation()


@dataclass(frozen=True)
class Routing:
    """Which experts each token chose.

    Attributes:
        expert_BTK: chosen experts. weight_BTK: their weights, summing to 1 over K; 0 where dropped.
        kept_BTK: False where the threshold dropped the expert; None where none was.
        logits_BTE: the router's fp32 logits.

    """

    expert_BTK: Tensor
    weight_BTK: Tensor
    kept_BTK: Tensor | None
    logits_BTE: Tensor

    def spread(self, value_BTK: Tensor) -> Tensor:
        """Place per-choice values at their experts, zeros elsewhere, [B, T, E]."""
        return torch.zeros_like(self.logits_BTE).scatter(-1, self.expert_BTK, value_BTK)

    def used(self) -> Tensor:
        """1 where a chosen expert was kept, 0 where the threshold dropped it, fp32."""
        if self.kept_BTK is None:
            return torch.ones_like(self.weight_BTK)
        return self.kept_BTK.to(self.weight_BTK)

    def active(self) -> Tensor:
        """Experts that each token uses, fp32 [B, T]."""
        return self.used().sum(-1)


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

    def apply_one(self, x_MI: Tensor, expert: int) -> Tensor:
        """Return one expert's map of all rows, [M, O], without gradients of the weights."""
        y_MO = ops.linear(x_MI, self.weight[expert])
        if self.lora_A is None or self.lora_B is None:
            return y_MO
        low_MR = ops.linear(x_MI, self.lora_A[expert])
        return y_MO + ops.linear(self.lora_scale * low_MR, self.lora_B[expert])


class Router(nn.Module):
    """One row per expert; logits are fp32 whatever the model's precision, and take no adapters."""

    def __init__(self, hidden: int, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, hidden))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return logits [B, T, E]."""
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        return ops.linear(x_BTD.to(wide), self.weight.to(wide)).float()


class ExpertBank(nn.Module):
    """Experts with one owner: their router rows and their SwiGLU maps."""

    def __init__(self, hidden: int, width: int, experts: int) -> None:
        super().__init__()
        self.experts = experts
        self.router = Router(hidden, experts)
        self.gate_up = GroupedLinear(experts, hidden, 2 * width)
        self.down = GroupedLinear(experts, width, hidden)

    def apply_to(self, x_MD: Tensor, slots: ops.Slots) -> Tensor:
        """Return each slot's output of its expert, [M, D]."""
        y_MD: Tensor = self.down(swiglu(self.gate_up(x_MD, slots)), slots)
        return y_MD

    def apply_one(self, x_MD: Tensor, expert: int) -> Tensor:
        """Return one expert's output of all rows, [M, D], without gradients of the weights."""
        return self.down.apply_one(swiglu(self.gate_up.apply_one(x_MD, expert)), expert)


class SparseExperts(ExpertBank):
    """Top-k of E SwiGLU experts with renormalised softmax weights (norm_topk_prob).

    Attributes:
        owned: experts of one institution that compete with this block's own, for training them
            against the frozen rest; None elsewhere. They are numbered after the block's own.

    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.expert_hidden_size, config.experts)
        self.per_token = config.experts_per_token
        self.owned: ExpertBank | None = None

    def route(self, x_BTD: Tensor, activation: Activation = ALL_EXPERTS) -> Routing:
        """Choose experts in fp32."""
        logits_BTE = self.router(x_BTD)
        if self.owned is not None:
            logits_BTE = torch.cat((logits_BTE, self.owned.router(x_BTD)), -1)
        per_token = min(activation.experts_per_token or self.per_token, logits_BTE.shape[-1])
        # The softmax over the chosen is the renormalised softmax over all, without a trace of the
        # others: leaving out an expert that nobody chose changes no bit (models.composition).
        chosen_BTK, expert_BTK = logits_BTE.topk(per_token, -1)
        kept_BTK = None
        if activation.threshold > 0:
            # w_j >= tau w_1, said of the logits.
            kept_BTK = chosen_BTK >= chosen_BTK[..., :1] + math.log(activation.threshold)
            chosen_BTK = chosen_BTK.where(kept_BTK, -math.inf)
        return Routing(expert_BTK, chosen_BTK.softmax(-1), kept_BTK, logits_BTE)

    def forward(
        self, x_BTD: Tensor, activation: Activation = ALL_EXPERTS
    ) -> tuple[Tensor, Routing]:
        """Return ([B, T, D], the routing)."""
        routing = self.route(x_BTD, activation)
        if x_BTD.shape[:2] == (1, 1) and x_BTD.is_cpu and not torch.is_grad_enabled():
            return self._one_token(x_BTD[0], routing)[None], routing
        kept_NK = None if routing.kept_BTK is None else routing.kept_BTK.flatten(0, 1)
        experts = routing.logits_BTE.shape[-1]
        dispatch = make_dispatch(routing.expert_BTK.flatten(0, 1), kept_NK, experts, x_BTD.shape[1])
        x_MD = gather(x_BTD.flatten(0, 1), dispatch)
        weight_M = routing.weight_BTK.flatten()[dispatch.source_M].to(x_MD)
        y_ND = combine(self._all_banks(x_MD, dispatch.slots), weight_M, dispatch)
        return y_ND.view_as(x_BTD), routing

    def _one_token(self, x_1D: Tensor, routing: Routing) -> Tensor:
        """Return a single token's sum over its experts, [1, D]: there is nothing to sort."""
        y_1D = torch.zeros_like(x_1D)
        experts, weights = routing.expert_BTK.flatten().tolist(), routing.weight_BTK.flatten()
        for expert, weight in zip(experts, weights.tolist(), strict=True):
            if weight > 0:
                bank, index = self._bank_of(expert)
                y_1D.add_(bank.apply_one(x_1D, index), alpha=weight)
        return y_1D

    def _bank_of(self, expert: int) -> tuple[ExpertBank, int]:
        if self.owned is None or expert < self.experts:
            return self, expert
        return self.owned, expert - self.experts

    def _all_banks(self, x_MD: Tensor, slots: ops.Slots) -> Tensor:
        if self.owned is None:
            return self.apply_to(x_MD, slots)
        shared, owned = slots.split(self.experts)
        x_shared, x_owned = x_MD.tensor_split((len(shared.token_M),))
        parts = (self.apply_to(x_shared, shared), self.owned.apply_to(x_owned, owned))
        return torch.cat(parts)
