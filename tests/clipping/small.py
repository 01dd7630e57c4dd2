"""The small model and batch that the tests of clipping share."""

import torch
from torch import Tensor

from models.config import ModelConfig
from models.decoder import Decoder
from models.language_model import IGNORED
from models.lora import add_lora
from privacy.dp.clipping import Chunk
from privacy.dp.records import UnitLayout

CONFIG = ModelConfig(
    vocab_size=64, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, experts=4,
    experts_per_token=2, expert_hidden_size=24, max_positions=64, initializer_range=0.2,
)  # fmt: skip


def build(variant: str, config: ModelConfig = CONFIG) -> Decoder:
    """A model with the head tied to the embedding, or as the variant says."""
    generator = torch.Generator().manual_seed(1)
    model = Decoder(config.model_copy(update={"tie_embeddings": variant != "untied"}), generator)
    if variant == "lora":
        add_lora(model, 4, 8.0, generator)
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.data.normal_(0, 0.1, generator=generator)
    if variant == "collapsed":  # two experts take all of a token, or none: the segments are long
        for block in model.blocks:
            block.experts.router.weight.data[2:] = -3.0
            block.experts.router.weight.requires_grad_(False)
    model.checkpoint_blocks = variant == "checkpointed"
    return model


def batch(units: list[int], positions: int = 20) -> Chunk:
    """Sequences of the named units; half of the first one's targets do not count."""
    generator = torch.Generator().manual_seed(7)
    token = torch.randint(0, 12, (len(units), positions + 1), generator=generator)
    target = token[:, 1:].clone()
    target[0, positions // 2 :] = IGNORED
    layout = UnitLayout(torch.tensor(units), max(units) + 1)
    return Chunk(token[:, :-1], target, layout, torch.ones(layout.units, dtype=torch.bool))


def zeros(model: Decoder) -> dict[str, Tensor]:
    """An accumulator for every trained parameter."""
    return {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.requires_grad}
