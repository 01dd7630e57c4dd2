"""Which experts a variant keeps: by whose they are, and by what they do on public text.

Leaving an expert out removes its weights and its router row; what remains computes what the parent
computes with those rows masked (models.composition).

Shapes: B rows, T positions, L layers, E experts, K chosen, D hidden, M slots of one expert.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from models.composition import Ownership
from models.config import ModelConfig
from models.decoder import Block, Decoder
from models.expert_module import PUBLIC
from models.experts import Routing, SparseExperts
from models.formats.shards import Advance
from models.language_model import IGNORED
from models.tokenizer import Row, stack_rows
from models.variants.extras import VariantError

Kept = tuple[tuple[int, ...], ...]  # per layer, ascending
_BATCH = 16


@dataclass(frozen=True)
class Use:
    """What the experts do on some text, fp64.

    Attributes:
        mass_LE: router weight that each expert receives, summed over tokens.
        reap_LE: mean over the tokens that chose it of weight times the norm of its output; 0 where
            none did. Source: REAP, Lasby et al. 2025 (arXiv 2510.13999).
        likeness_LEE: correlation of two experts' router logits over the tokens.

    """

    mass_LE: Tensor
    reap_LE: Tensor
    likeness_LEE: Tensor


def everything(config: ModelConfig) -> Kept:
    """Keep every expert of every layer."""
    return (tuple(range(config.experts)),) * config.layers


def of_owners(model: Decoder, ownership: Ownership | None, owners: Collection[str]) -> Kept:
    """Keep the base's own experts and those of some owners.

    Raises:
        VariantError: an owner without experts here.

    """
    shares = () if ownership is None else ownership.shares
    known = {share.owner for share in shares} | {PUBLIC}
    if unknown := sorted(set(owners) - known):
        raise VariantError(
            f"Expected owners among {', '.join(sorted(known))}, got {', '.join(unknown)}. `arion "
            "model show` lists whose the experts are."
        )
    kept = [
        expert
        for share in shares
        if share.owner in {PUBLIC, *owners}
        for expert in range(share.first, share.first + share.count)
    ]
    return (tuple(kept or range(model.config.experts)),) * model.config.layers


@torch.no_grad()
def expert_use(
    model: Decoder, rows: Sequence[Row], advance: Advance = lambda done, total: None
) -> Use:
    """Measure what each expert does on public text.

    Args:
        model: on CPU. rows: at least one, within the model's positions.
        advance: called with (rows read, rows in all).

    """
    layers = [_Layer(model.config.experts) for _ in model.blocks]
    read_watched(model, rows, [block.experts for block in _blocks(model)], layers, advance)
    return Use(
        torch.stack([layer.mass_E for layer in layers]),
        torch.stack([layer.norm_E / layer.tokens_E.clamp_min(1) for layer in layers]),
        torch.stack([layer.likeness() for layer in layers]),
    )


class Watcher(Protocol):
    """What adds up over the tokens that one module of a model saw."""

    counted_BT: Tensor
    """Which positions of the pass count; set before each."""

    @property
    def watch(self) -> Callable[..., None]:
        """A forward hook."""


def read_watched(
    model: Decoder,
    rows: Sequence[Row],
    modules: Sequence[nn.Module],
    watchers: Sequence[Watcher],
    advance: Advance,
) -> None:
    """Let a model read rows, a batch at a time, while each of some modules is watched.

    Args:
        model: on CPU. rows: at least one, within the model's positions.
        modules: of the model. watchers: one of each.
        advance: called with (rows read, rows in all).

    """
    hooks = [
        module.register_forward_hook(watcher.watch)
        for module, watcher in zip(modules, watchers, strict=True)
    ]
    try:
        for first in range(0, len(rows), _BATCH):
            part = rows[first : first + _BATCH]
            token_BT, target_BT = stack_rows(part, max(len(row.ids) for row in part) - 1)
            for watcher in watchers:
                watcher.counted_BT = target_BT != IGNORED
            model.hidden(token_BT)
            advance(first + len(part), len(rows))
    finally:
        for hook in hooks:
            hook.remove()


class _Layer:
    """Sums over the tokens that one layer saw."""

    def __init__(self, experts: int) -> None:
        self.mass_E, self.norm_E, self.tokens_E = torch.zeros(3, experts, dtype=torch.float64)
        self.counted_BT = torch.ones(1, 1, dtype=torch.bool)
        self._count = 0
        self._logit_E = torch.zeros(experts, dtype=torch.float64)
        self._product_EE = torch.zeros(experts, experts, dtype=torch.float64)

    def watch(
        self, experts: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, Routing]
    ) -> None:
        """Add what a pass did; a forward hook of `SparseExperts`."""
        assert isinstance(experts, SparseExperts)
        routing, x_ND = output[1], inputs[0][self.counted_BT]
        logits_NE = routing.logits_BTE[self.counted_BT].double()
        self._count += len(logits_NE)
        self._logit_E += logits_NE.sum(0)
        self._product_EE += logits_NE.T @ logits_NE
        weight_NE = routing.spread(routing.weight_BTK)[self.counted_BT]
        chosen_NE = routing.spread(routing.used())[self.counted_BT] > 0
        for expert, chosen_N in enumerate(chosen_NE.T):
            weight_M = weight_NE[chosen_N, expert].double()
            norm_M = experts.apply_one(x_ND[chosen_N], expert).norm(dim=-1).double()
            self.mass_E[expert] += weight_M.sum()
            self.norm_E[expert] += (weight_M * norm_M).sum()
            self.tokens_E[expert] += len(weight_M)

    def likeness(self) -> Tensor:
        """Correlation of the router logits, [E, E]; 0 where one does not vary."""
        mean_E = self._logit_E / max(self._count, 1)
        spread_EE = self._product_EE / max(self._count, 1) - mean_E[:, None] * mean_E
        scale_E = spread_EE.diagonal().clamp_min(1e-12).sqrt()
        return spread_EE / (scale_E[:, None] * scale_E)


def best(kept: Kept, score_LE: Tensor, count: int) -> Kept:
    """Keep the `count` experts of each layer that score most, out of `kept`.

    Raises:
        VariantError: more than there are.

    """
    if not 1 <= count <= min(map(len, kept)):
        raise VariantError(
            f"Expected 1 to {min(map(len, kept))} experts to keep, got {count}. Correct --experts."
        )
    chosen = []
    for layer, experts in enumerate(kept):
        by_score = sorted(experts, key=lambda expert: (-float(score_LE[layer, expert]), expert))
        chosen.append(tuple(sorted(by_score[:count])))
    return tuple(chosen)


def prune(model: Decoder, kept: Kept) -> Decoder:
    """Return a model of some of the experts; the given one is not changed.

    Args:
        kept: the same number in every layer, at least one.

    """
    state = dict(model.state_dict())
    for layer, experts in enumerate(kept):
        index = torch.tensor(experts)
        for name in _expert_names(state, layer):
            state[name] = state[name].index_select(0, index)
    count = len(kept[0])
    per_token = min(model.config.experts_per_token, count)
    sizes = {"experts": count, "experts_per_token": per_token}
    smaller = Decoder(model.config.model_copy(update=sizes))
    smaller.load_state_dict(state)
    smaller.still_idle_routers()
    return smaller


def merge(model: Decoder, kept: Kept, use: Use) -> Decoder:
    """Return a model of the kept experts, each averaged with those that go and are most like it.

    An expert that goes joins the kept one whose router logits correlate most with its own; the
    average is weighted by routing mass. Router rows are the kept experts' own. Hidden units are not
    matched first: experts that were not branched from a common one may lose by it.

    Source: M-SMoE, Li et al. 2024 (arXiv 2310.01334): grouping by router logits and merging
    weighted by use, without its permutation alignment.
    """
    merged = prune(model, kept)
    state, out = model.state_dict(), merged.state_dict()
    for layer, experts in enumerate(kept):
        share_KE = _shares(torch.tensor(experts), use.mass_LE[layer], use.likeness_LEE[layer])
        for name in _expert_names(state, layer):
            if "router" not in name:
                mixed = torch.einsum("ke,eoi->koi", share_KE.to(state[name]), state[name])
                out[name].copy_(mixed)
    return merged


def _shares(kept_K: Tensor, mass_E: Tensor, likeness_EE: Tensor) -> Tensor:
    """Return each expert's share in each kept one, [K, E]; rows sum to 1."""
    group_E = likeness_EE[:, kept_K].argmax(1)
    group_E[kept_K] = torch.arange(len(kept_K))
    share_KE = torch.zeros(len(kept_K), len(mass_E), dtype=torch.float64)
    share_KE[group_E, torch.arange(len(mass_E))] = mass_E
    unused_K = share_KE.sum(1) == 0
    share_KE[unused_K, kept_K[unused_K]] = 1.0
    return share_KE / share_KE.sum(1, keepdim=True)


def _expert_names(state: dict[str, Tensor], layer: int) -> list[str]:
    return [name for name in state if name.startswith(f"blocks.{layer}.experts.")]


def _blocks(model: Decoder) -> Iterator[Block]:
    for block in model.blocks:
        assert isinstance(block, Block)
        yield block
