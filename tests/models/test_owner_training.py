"""Training owned experts on text: the base stays, the text is learned, the rows prefer it."""

import pytest
import torch

from models.config import ModelConfig
from models.decoder import Decoder
from models.owned import banks, public_inputs, router_inputs, router_rows
from models.owner_training import (
    OwnerRecipe,
    domain_direction,
    train_owner,
    windows,
    with_public,
)
from models.training_settings import WarmUp

CONFIG = ModelConfig(
    vocab_size=64, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, experts=2,
    experts_per_token=2, expert_hidden_size=24, max_positions=64, initializer_range=0.2,
)  # fmt: skip
OWN = torch.randint(0, 24, (3000,), generator=torch.Generator().manual_seed(1)).int()
PUBLIC = torch.randint(20, 64, (3000,), generator=torch.Generator().manual_seed(2)).int()
TRAINING = WarmUp(steps=25, batch=4, sequence_length=16, learning_rate=1e-2, balance=0.0, z=0.0)


def model() -> Decoder:
    return Decoder(CONFIG, torch.Generator().manual_seed(0))


def nats(model: Decoder, stream: torch.Tensor) -> float:
    token_BT = windows(stream, 32, 17, torch.Generator().manual_seed(3))
    loss = model.loss(token_BT[:, :-1], token_BT[:, 1:])
    return float(loss.total_B.sum().detach() / loss.tokens_B.sum())


@pytest.mark.parametrize("train_rows", [True, False])
def test_the_owner_learns_and_the_base_stays(train_rows: bool) -> None:
    trained, base = model(), model()
    recipe = OwnerRecipe(sources=(0, 1), train_rows=train_rows, embedded=16, training=TRAINING)
    steps = []
    train_owner(
        trained, OWN, PUBLIC, recipe, generator=torch.Generator().manual_seed(4),
        progress=lambda step, loss: steps.append(step),
    )  # fmt: skip
    assert steps == list(range(1, 26))
    assert nats(trained, OWN) < nats(base, OWN) - 0.5
    kept = dict(trained.named_parameters())
    assert all(torch.equal(kept[name], weight) for name, weight in base.named_parameters())
    assert len(banks(trained)) == 2


def test_rows_prefer_the_owners_text() -> None:
    base = model()
    generator = torch.Generator().manual_seed(5)
    seen = public_inputs(base, windows(PUBLIC, 64, 16, generator))
    direction = domain_direction(base, windows(OWN, 64, 16, generator), seen)
    rows = router_rows(base, direction, (0,), seen)
    fresh = {name: router_inputs(base, windows(text, 64, 16, generator)).flatten(1, 2)
             for name, text in (("own", OWN), ("public", PUBLIC))}  # fmt: skip
    for layer, block in enumerate(base.blocks):
        gate = rows[layer, 0] - block.experts.router.weight[0].detach()
        own, public = ((fresh[name][layer] @ gate).mean() for name in ("own", "public"))
        unit = (fresh["public"][layer] @ block.experts.router.weight.detach().T).std(0).mean()
        assert own > public + 0.5 * unit
        assert public < 0


def test_public_text_is_the_given_share() -> None:
    for share in (0.0, 0.25, 0.8):
        mixed = with_public(OWN, PUBLIC[:100], share)
        assert torch.equal(mixed[:3000], OWN)
        assert (len(mixed) - 3000) / len(mixed) == pytest.approx(share, abs=1e-3)
        assert torch.equal(mixed[3000:3100], PUBLIC[:100][: len(mixed) - 3000])


def test_too_little_text_is_a_clear_error() -> None:
    recipe = OwnerRecipe(sources=(0,), training=TRAINING)
    for own, public in ((OWN[:10], PUBLIC), (OWN, PUBLIC[:10])):
        with pytest.raises(ValueError, match="more text"):
            train_owner(model(), own, public, recipe, generator=torch.Generator())
