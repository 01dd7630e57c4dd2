"""A dense student: a layer's best experts side by side as one, in the layers that do most.

The joined expert of n experts is n times as wide. Each part's down-projection is scaled by the
expert's share of the routing mass, so that before any training it computes the mixture that the
router makes on average, sum_e share_e E_e(x). `models.variants.distil` trains it from there.

Shapes: B rows, T positions, L layers, E experts, J joined experts, D hidden, G an expert's width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import ModelConfig
from models.decoder import Block, Decoder
from models.experts import ExpertBank
from models.formats.shards import Advance
from models.tokenizer import Row
from models.variants.experts import Kept, read_watched
from models.variants.extras import VariantError


def dense_config(config: ModelConfig, joined: int, depth: int) -> ModelConfig:
    """Return the shape of a student of `depth` layers whose one expert is `joined` in one."""
    width = joined * config.expert_hidden_size
    sizes = {"layers": depth, "experts": 1, "experts_per_token": 1, "expert_hidden_size": width}
    return config.model_copy(update=sizes)


@torch.no_grad()
def block_influence(
    model: Decoder, rows: Sequence[Row], advance: Advance = lambda done, total: None
) -> Tensor:
    """Return how much each layer changes what it is given, fp64 [L], between 0 and 2.

    It is 1 - cosine of a layer's input and output hidden states, mean over the tokens of the text.
    Source: ShortGPT, Men et al. 2024 (arXiv 2403.03853), eq. 1.

    Args:
        model: on CPU. rows: at least one, of public text, within the model's positions.
        advance: called with (rows read, rows in all).

    """
    layers = [_Change() for _ in model.blocks]
    read_watched(model, rows, list(model.blocks), layers, advance)
    return torch.stack([1 - layer.cosine / layer.tokens for layer in layers])


class _Change:
    """Sum of cosines over the tokens that one layer saw."""

    def __init__(self) -> None:
        self.cosine, self.tokens = torch.zeros((), dtype=torch.float64), 0
        self.counted_BT = torch.ones(1, 1, dtype=torch.bool)

    def watch(self, block: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor]) -> None:
        """Add what a pass did; a forward hook of `Block`."""
        before, after = (x[self.counted_BT].double() for x in (inputs[0], output[0]))
        self.cosine += F.cosine_similarity(before, after, dim=-1).sum()
        self.tokens += len(before)


def most_influential(influence_L: Tensor, depth: int) -> tuple[int, ...]:
    """Return the `depth` layers that change most, ascending; of equals the earlier.

    Raises:
        VariantError: more than there are, or none.

    """
    if not 1 <= depth <= len(influence_L):
        raise VariantError(
            f"Expected 1 to {len(influence_L)} layers to keep, got {depth}. Correct --depth."
        )
    order = sorted(range(len(influence_L)), key=lambda layer: (-float(influence_L[layer]), layer))
    return tuple(sorted(order[:depth]))


@torch.no_grad()
def dense_student(model: Decoder, layers: Sequence[int], chosen: Kept, mass_LE: Tensor) -> Decoder:
    """Return the student; the given model is not changed.

    Args:
        layers: of the model, ascending, that the student has.
        chosen: of each of these layers, the experts to join; as many in each.
        mass_LE: routing mass of all the model's experts, in all its layers.

    """
    state = model.state_dict()
    own = {name: value for name, value in state.items() if not name.startswith("blocks.")}
    for place, (layer, experts) in enumerate(zip(layers, chosen, strict=True)):
        old, new = f"blocks.{layer}.", f"blocks.{place}."
        own |= {
            new + name.removeprefix(old): value
            for name, value in state.items()
            if name.startswith(old) and ".experts." not in name
        }
        block = model.blocks[layer]
        assert isinstance(block, Block)
        share_J = _shares(mass_LE[layer, list(experts)])
        for name, value in join(block.experts, experts, share_J).items():
            own[f"{new}experts.{name}"] = value
    student = Decoder(dense_config(model.config, len(chosen[0]), len(layers)))
    student.to(model.embedding).load_state_dict(own)
    return student


def join(bank: ExpertBank, experts: Sequence[int], share_J: Tensor) -> dict[str, Tensor]:
    """Return the weights of one expert that computes sum_j share_j E_j(x), by name in a bank.

    Its router row is of zeros: with one expert there is nothing to choose.
    """
    index = torch.tensor(list(experts))
    gate_JGD, up_JGD = bank.gate_up.weight[index].chunk(2, 1)
    down_JDG = bank.down.weight[index] * share_J.to(bank.down.weight)[:, None, None]
    return {
        "router.weight": torch.zeros_like(bank.router.weight[:1]),
        "gate_up.weight": torch.cat((gate_JGD.flatten(0, 1), up_JGD.flatten(0, 1)))[None],
        "down.weight": down_JDG.transpose(0, 1).flatten(1)[None],
    }


def _shares(mass_J: Tensor) -> Tensor:
    """Return each expert's share of their routing mass; equal ones where no token chose any."""
    total = mass_J.sum()
    return mass_J / total if total > 0 else torch.full_like(mass_J, 1 / len(mass_J))
