"""No coupling, for every training option offered under DP: one example's clipped gradient is the
same whichever others are in the batch. What would couple is not offered, and is caught if added.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.config import ModelConfig
from models.decoder import Decoder
from models.language_model import SequenceLoss
from models.lora import add_lora
from models.owned import banks, branch
from privacy.dp.clipping import Chunk, add_clipped_gradients
from privacy.dp.records import UnitLayout

CONFIG = ModelConfig(
    vocab_size=61, hidden_size=16, layers=2, heads=2, kv_heads=1, head_dim=8, experts=4,
    experts_per_token=2, expert_hidden_size=12, max_positions=32, initializer_range=0.3,
)  # fmt: skip
UNITS, POSITIONS = 6, 20


def full(model: Decoder) -> None:
    model.train_in_full()


def with_routers(model: Decoder) -> None:
    model.requires_grad_(True)


def adapters(model: Decoder) -> None:
    generator = torch.Generator().manual_seed(3)
    add_lora(model, 4, 8.0, generator)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.normal_(0, 0.1, generator=generator)


def owned(model: Decoder) -> None:
    """After a step: a row that equals its source's ties with it, and rounding breaks ties."""
    branch(model, (0, 2), train_rows=True)
    generator = torch.Generator().manual_seed(5)
    for bank in banks(model):
        for weight in bank.router.parameters():
            weight.data += 0.05 * torch.randn(weight.shape, generator=generator)


def checkpointed(model: Decoder) -> None:
    model.train_in_full()
    model.checkpoint_blocks = True


OPTIONS = (full, with_routers, adapters, owned, checkpointed)


class BatchBalanced(Decoder):
    """What must never be offered: a balance loss over the whole batch."""

    def loss(self, token_BT: Tensor, target_BT: Tensor, **_: object) -> SequenceLoss:
        hidden_BTD, routings = self.hidden(token_BT)
        total_B = self._nats(hidden_BTD, target_BT).sum(1)
        share_E = routings[0].logits_BTE.softmax(-1).mean((0, 1))
        return SequenceLoss(
            total_B + 100 * share_E.square().sum(),
            (target_BT >= 0).sum(1),
            torch.zeros(len(total_B)),
        )


def first_unit_alone(model: Decoder, others: int) -> Tensor:
    """The clipped gradient of unit 0 in a batch whose other units differ with `others`."""
    generator = torch.Generator().manual_seed(7)
    mine = torch.randint(0, 61, (1, POSITIONS + 1), generator=generator)
    generator.manual_seed(others)
    rest = torch.randint(0, 61, (UNITS - 1, POSITIONS + 1), generator=generator)
    token = torch.cat((mine, rest)) if others else mine
    units = len(token)
    only_first = torch.arange(units) == 0
    layout = UnitLayout(torch.arange(units), units)
    chunk = Chunk(token[:, :-1], token[:, 1:], layout, only_first)
    sums = {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.requires_grad}
    add_clipped_gradients(model, chunk, 1.0, sums)
    return torch.cat([total.flatten() for total in sums.values()])


def largest_difference(model: Decoder, option: Callable[[Decoder], None]) -> float:
    option(model)
    alone = first_unit_alone(model, 0)
    assert float(alone.norm()) == pytest.approx(1.0, rel=1e-3)  # clipped, so of known size
    return max(float((first_unit_alone(model, o) - alone).norm()) for o in (1, 2, 3))


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.__name__)
def test_the_others_in_a_batch_are_not_felt(option: Callable[[Decoder], None]) -> None:
    model = Decoder(CONFIG, torch.Generator().manual_seed(0))
    assert largest_difference(model, option) < 1e-6


def test_a_batch_level_balance_loss_would_be_felt() -> None:
    model = BatchBalanced(CONFIG, torch.Generator().manual_seed(0))
    assert largest_difference(model, with_routers) > 1e-2
