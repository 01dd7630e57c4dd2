"""An institution's own experts: branched from the model's, trained against the frozen rest.

An owner adds a bank of experts to every layer (`branch`), trains it alone, and releases it as a
module (models.expert_module). Which tokens go there is decided by router rows that start from the
owner's *domain embedding*: how its text's router inputs differ, layer by layer, from public text's.

Source: Shi et al. 2025, "FlexOlmo" (arXiv 2507.07024), §3: experts that learn to coordinate through
a frozen public anchor, router rows from domain embeddings. Different here: the embedding is the
model's own router input instead of another model's output, and rows are calibrated on public text,
which stands in for FlexOlmo's learned bias.

Shapes: B sequences, T positions, L layers, D hidden, E experts of the model, N owned experts per
layer, P public tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.decoder import Block, Decoder
from models.experts import ExpertBank
from models.formats.families import QWEN3_MOE
from models.formats.tensors import bank_views
from models.language_model import IGNORED


class OwnedError(ValueError):
    """Owned experts that cannot be added, or do not belong to the model."""


def branch(
    model: Decoder, sources: Sequence[int], rows_LND: Tensor | None = None, *, train_rows: bool
) -> None:
    """Add a bank of owned experts to every layer and leave exactly that bank trainable.

    Args:
        model: without owned experts and adapters; changed in place.
        sources: for each owned expert, the index of the model's expert that it starts as a copy of.
            A public choice: it may not depend on private text.
        rows_LND: the bank's router rows, as `router_rows` makes them; None copies those of the
            sources, so that copy and source tie until training parts them.
        train_rows: whether the rows are trained too. Under differential privacy they are released
            like any trained weight, with noise; False leaves them as given.

    Raises:
        OwnedError: an unknown source, rows of another shape or not finite, a model that has a bank
            or adapters already.

    """
    _check_branch(model, sources, rows_LND)
    model.requires_grad_(False)
    for layer, block in enumerate(_blocks(model)):
        shared = block.experts
        width, hidden = shared.down.weight.shape[2], shared.down.weight.shape[1]
        bank = ExpertBank(hidden, width, len(sources)).to(shared.router.weight)
        for copy, own in (
            (bank.router, shared.router),
            (bank.gate_up, shared.gate_up),
            (bank.down, shared.down),
        ):
            copy.weight.data.copy_(own.weight.data[list(sources)])
        if rows_LND is not None:
            bank.router.weight.data.copy_(rows_LND[layer])
        bank.router.requires_grad_(train_rows)
        shared.owned = bank


def banks(model: Decoder) -> tuple[ExpertBank, ...]:
    """Return the owned bank of every layer.

    Raises:
        OwnedError: the model has none.

    """
    found = tuple(b.experts.owned for b in _blocks(model) if b.experts.owned is not None)
    if len(found) != len(model.blocks):
        raise OwnedError("Expected a model with owned experts, got one without. Call branch first.")
    return found


def owned_tensors(model: Decoder) -> dict[str, Tensor]:
    """Copy the bank's weights under the names Hugging Face gives experts, numbered from 0."""
    return {name: view.detach().clone() for name, view in module_views(banks(model))}


def module_views(banks: Sequence[ExpertBank]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in a Qwen3-MoE folder, view into the bank's weight) for one bank per layer."""
    for layer, bank in enumerate(banks):
        yield from bank_views(f"model.layers.{layer}.", bank, QWEN3_MOE)


@torch.no_grad()
def router_inputs(model: Decoder, token_BT: Tensor) -> Tensor:
    """Return what the router of every layer sees, fp32 [L, B, T, D]."""
    seen: list[Tensor] = []
    with _watching(model, seen):
        model.hidden(token_BT)
    return torch.stack(seen).float()


def sequence_embeddings(
    model: Decoder, token_BT: Tensor, target_BT: Tensor, centre_LD: Tensor
) -> Tensor:
    """Return each sequence's own domain embedding, [B, L, D]: no two sequences are coupled.

    The mean router input over the positions whose target counts, less the public mean; zero for a
    sequence that counts no target. A private release clips these per unit, sums them and adds
    noise; the sum needs no division, for `router_rows` uses its direction only.

    Args:
        centre_LD: `PublicInputs.centre_LD`.

    """
    x_LBTD = router_inputs(model, token_BT)
    counted_BT1 = (target_BT != IGNORED)[..., None]
    count_B1 = counted_BT1.sum(1)
    mean_LBD = (x_LBTD * counted_BT1).sum(2) / count_B1.clamp(min=1)
    embedding_LBD = (mean_LBD - centre_LD[:, None]).where(count_B1 > 0, 0.0)
    return embedding_LBD.transpose(0, 1)


@dataclass(frozen=True)
class PublicInputs:
    """Router inputs of public text: the scale against which owners' rows are set.

    Attributes:
        x_LPD: router inputs of P public tokens. centre_LD: their mean.

    """

    x_LPD: Tensor
    centre_LD: Tensor


def public_inputs(model: Decoder, token_BT: Tensor) -> PublicInputs:
    """Run the model over public tokens; a few thousand are enough."""
    x_LPD = router_inputs(model, token_BT).flatten(1, 2)
    return PublicInputs(x_LPD, x_LPD.mean(1))


@torch.no_grad()
def router_rows(
    model: Decoder,
    direction_LD: Tensor,
    sources: Sequence[int],
    public: PublicInputs,
    *,
    gain: float = 1.0,
    margin: float = 1.0,
) -> Tensor:
    """Return router rows that prefer an owner's text to public text, [L, N, D].

    The row of an owned expert is its source's row plus one gate vector per layer. The gate's logit
    over public tokens has, exactly, standard deviation `gain` along the direction and mean
    -`margin`, both in units of the mean standard deviation of the model's own router logits there
    (1 where that is 0: a dense model's router). Over the owner's text it is higher by as much as
    that text differs. Only the direction of `direction_LD` matters, so a noised sum serves as well
    as a mean.

    Args:
        direction_LD: sum or mean of the owner's centred embeddings (`sequence_embeddings`).
        gain: > 0, how far the gate tells domains apart. margin: how much better than public text a
            token must fit the owner's domain before the copy is preferred to its source.

    Raises:
        OwnedError: a direction of zero length, or not finite.

    """
    norm_L = direction_LD.norm(dim=-1)
    if not (torch.isfinite(norm_L) & (norm_L > 0)).all():
        raise OwnedError(
            "Expected a finite domain direction other than zero in every layer, got another. "
            "Give more text of the domain."
        )
    rows = []
    for block, direction_D, x_PD in zip(_blocks(model), direction_LD, public.x_LPD, strict=True):
        own_ED = block.experts.router.weight.detach().float()
        spread = (x_PD @ own_ED.T).std(0).mean()
        unit = spread if spread > 0 else torch.ones(())  # a dense base's router is zero
        centre_D = x_PD.mean(0)
        along_D = centre_D / centre_D.norm().square()
        across_D = direction_D - (direction_D @ centre_D) * along_D
        gate_D = gain * unit / (x_PD @ across_D).std() * across_D - margin * unit * along_D
        rows.append(own_ED[list(sources)] + gate_D)
    return torch.stack(rows)


def _blocks(model: Decoder) -> Iterator[Block]:
    for block in model.blocks:
        assert isinstance(block, Block)
        yield block


@contextmanager
def _watching(model: Decoder, seen: list[Tensor]) -> Iterator[None]:
    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].detach())

    hooks = [block.experts.register_forward_pre_hook(note) for block in _blocks(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_branch(model: Decoder, sources: Sequence[int], rows_LND: Tensor | None) -> None:
    if any(block.experts.owned is not None for block in _blocks(model)):
        raise OwnedError("Expected a model without owned experts, got one. Branch the base itself.")
    if any(layer.lora_A is not None for _, layer in model.adapted_layers()):
        raise OwnedError("Expected a model without adapters, got some. Call merge_lora first.")
    experts = model.config.experts
    if not sources or not all(0 <= source < experts for source in sources):
        raise OwnedError(
            f"Expected sources between 0 and {experts - 1}, got {list(sources)}. Name experts of "
            "the model."
        )
    shape = (model.config.layers, len(sources), model.config.hidden_size)
    if rows_LND is not None and (rows_LND.shape != shape or not torch.isfinite(rows_LND).all()):
        raise OwnedError(
            f"Expected finite router rows of shape {shape}, got {tuple(rows_LND.shape)}. Make them "
            "with router_rows for the same model and sources."
        )
