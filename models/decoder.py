"""The sparse decoder: Qwen3-MoE mathematics, one loss per sequence.

Shapes: B sequences, T positions, D hidden, V vocabulary, L layers, E experts.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models import ops
from models.cache import KeyValueCache, Past
from models.config import ModelConfig
from models.cross_entropy import nats_of_logits, token_cross_entropy
from models.experts import ALL_EXPERTS, Activation, GroupedLinear, Routing, SparseExperts
from models.language_model import IGNORED, LanguageModel, SequenceLoss
from models.layers import Attention, Linear, RMSNorm, Rotary, Rotation


class Block(nn.Module):
    """Attention and sparse experts, both behind a norm and a residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.experts_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.experts = SparseExperts(config)

    def forward(
        self, x_BTD: Tensor, rotary: Rotation, activation: Activation, past: Past | None = None
    ) -> tuple[Tensor, Routing]:
        """Return ([B, T, D], the routing)."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotary, past)
        y_BTD, routing = self.experts(self.experts_norm(x_BTD), activation)
        return x_BTD + y_BTD, routing


class Decoder(LanguageModel):
    """A decoder-only sparse language model.

    Args:
        config: sizes.
        generator: source of the initial weights; None leaves them uninitialised (for loading).

    Attributes:
        checkpoint_blocks: keep only the blocks' inputs for backward and compute the rest again: a
            third more time for a fraction of the memory (Chen et al. 2016, arXiv 1604.06174).
        compute_dtype: type of the activations between the embedding and the logits, and so of all
            large products; None for the weights' own. Weights and their gradients keep theirs.

    """

    def __init__(self, config: ModelConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_blocks = False
        self.compute_dtype: torch.dtype | None = None
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = (
            self.embedding
            if config.tie_embeddings
            else nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        )
        self.rotary = Rotary(config)
        if generator is not None:
            self._initialise(generator)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """Normal weights; maps back into the residual stream scaled by 1/sqrt(2 L) (GPT-2)."""
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                residual = ".out." in name or ".down." in name
                parameter.normal_(0.0, std, generator=generator)
                parameter.mul_((2 * self.config.layers) ** -0.5 if residual else 1.0)
        self.still_idle_routers()

    @torch.no_grad()
    def still_idle_routers(self) -> None:
        """Set the routers to zero where there is one expert per layer, and nothing to choose.

        So the folder of a dense model, which has no routers, holds all of its weights.
        """
        for name, parameter in self.named_parameters():
            if self.config.experts == 1 and ".router." in name and ".owned." not in name:
                parameter.zero_()

    @property
    def max_positions(self) -> int:
        """Longest sequence, in tokens."""
        return self.config.max_positions

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model knows."""
        return self.config.vocab_size

    @property
    def experts_per_token(self) -> int:
        """See `LanguageModel.experts_per_token`."""
        return self.config.experts_per_token

    def adapted_layers(self) -> Iterator[tuple[str, Linear | GroupedLinear]]:
        """Yield the layers that take adapters: attention and experts, never a router."""
        for name, module in self.named_modules():
            if isinstance(module, Linear | GroupedLinear):
                yield name, module

    def train_in_full(self) -> None:
        """Leave everything trainable but the routers.

        A router's choice couples to every token; under noise it is kept as public training left it
        (docs/architecture.md, "What is trained").
        """
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(".router." not in name)

    def hidden(
        self, token_BT: Tensor, activation: Activation = ALL_EXPERTS
    ) -> tuple[Tensor, list[Routing]]:
        """Return (final hidden states [B, T, D], one routing per layer)."""
        self.check_length(token_BT.shape[1])
        x_BTD = ops.embedding(token_BT, self.embedding)
        x_BTD = x_BTD.to(self.compute_dtype or x_BTD.dtype)
        routings = []
        for block in self.blocks:
            if self.checkpoint_blocks and torch.is_grad_enabled():
                x_BTD, routing = checkpoint(
                    block, x_BTD, self.rotary, activation, use_reentrant=False
                )
            else:
                x_BTD, routing = block(x_BTD, self.rotary, activation)
            routings.append(routing)
        return self.norm(x_BTD), routings

    def read_on(
        self, token_BT: Tensor, cache: KeyValueCache, activation: Activation = ALL_EXPERTS
    ) -> Tensor:
        """Return final hidden states [B, T, D] of tokens that follow what `cache` holds.

        Args:
            token_BT: int64 in [0, V); first the prompts, then one token per row. They are added to
                the cache.
            cache: of this decoder. activation: how many experts each token uses.

        """
        pasts = cache.advance(token_BT.shape[1])
        position_B = pasts[0].columns.position_B
        rotary = self.rotary if position_B is None else self.rotary.at(position_B)
        x_BTD = ops.embedding(token_BT, self.embedding)
        for block, past in zip(self.blocks, pasts, strict=True):
            x_BTD, _ = block(x_BTD, rotary, activation, past)
        y_BTD: Tensor = self.norm(x_BTD)
        return y_BTD

    def forward(self, token_BT: Tensor, activation: Activation = ALL_EXPERTS) -> Tensor:
        """Return next-token logits [B, T, V]."""
        return ops.linear(self.hidden(token_BT, activation)[0], self.head)

    def loss(
        self,
        token_BT: Tensor,
        target_BT: Tensor,
        *,
        balance: float = 0.0,
        z: float = 0.0,
        activation: Activation = ALL_EXPERTS,
    ) -> SequenceLoss:
        """Return the loss of each sequence; targets equal to IGNORED do not count.

        Args:
            token_BT: int64 inputs in [0, V). target_BT: the next tokens, or IGNORED.
            balance: weight of the sequence-wise balance loss. z: weight of the router z-loss.
            activation: how many experts each token uses.

        """
        hidden_BTD, routings = self.hidden(token_BT, activation)
        nats_BT = self._nats(hidden_BTD, target_BT)
        counted_BT = target_BT != IGNORED
        router_B = nats_BT.new_zeros(len(token_BT))
        if balance or z:
            router_B = sum((router_loss(r, balance, z) for r in routings), router_B)
        return SequenceLoss(nats_BT.sum(1), counted_BT.sum(1), router_B)

    def _nats(self, hidden_BTD: Tensor, target_BT: Tensor) -> Tensor:
        """Return each position's cross-entropy, fp32 [B, T].

        Private training of the output matrix needs the gradient of all logits, so it forms them.
        """
        target_N = target_BT.flatten()
        if ops.is_recorded(self.head):
            logits_BTV = ops.linear(hidden_BTD, self.head)
            nats_N = nats_of_logits(logits_BTV.flatten(0, 1), target_N, IGNORED)
        else:
            hidden_ND = hidden_BTD.flatten(0, 1)
            head_VD = self.head.to(hidden_ND.dtype)
            nats_N = token_cross_entropy(hidden_ND, head_VD, target_N, IGNORED)
        return nats_N.view_as(target_BT)


def router_loss(routing: Routing, balance: float, z: float) -> Tensor:
    """Return each sequence's own balance and z loss, [B].

    Source: sequence-wise balance, DeepSeek-V3 (arXiv 2412.19437, eq. 17); z-loss, ST-MoE
    (arXiv 2202.08906, eq. 5). Batch-level variants would couple examples and are not offered.
    """
    share_BTE = routing.logits_BTE.softmax(-1)
    active_BT1 = routing.active()[..., None]
    chosen_BTE = routing.spread(routing.used()) / active_BT1
    load_BE = chosen_BTE.mean(1) * share_BTE.shape[-1]
    balance_B = (load_BE * share_BTE.mean(1)).sum(-1)
    z_B = routing.logits_BTE.logsumexp(-1).square().mean(1)
    return balance * balance_B + z * z_B
