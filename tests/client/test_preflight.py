"""What a node looks at before it reserves anything: each failure is one line, and costs nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import client.preflight
from client.preflight import PreflightError, check_private_gradients
from models.config import ModelConfig
from models.decoder import Decoder
from models.language_model import SequenceLoss
from models.recipe import prepare
from models.training_settings import Recipe
from privacy.dp.clipping import ClippingError
from privacy.rounds import PlanCode, PlanRefused
from tests.small_hands import Hands

CONFIG = ModelConfig(
    vocab_size=97, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, experts=4,
    experts_per_token=2, expert_hidden_size=24, max_positions=64, initializer_range=0.1,
)  # fmt: skip
RECIPE = Recipe(sequence_length=24)


def build(kind: str = "full") -> Decoder:
    model = Decoder(CONFIG, torch.Generator().manual_seed(0))
    prepare(model, RECIPE.model_copy(update={"kind": kind}))
    return model


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_model_that_trains_passes_and_is_not_changed(kind: str) -> None:
    model = build(kind)
    before = [parameter.clone() for parameter in model.parameters()]
    check_private_gradients(model, RECIPE)
    for own, other in zip(model.parameters(), before, strict=True):
        assert torch.equal(own, other)
        assert own.grad is None


class Coupled(Decoder):
    """Its loss looks at the whole batch, as a batch-level balance loss does."""

    def loss(self, token_BT: Tensor, target_BT: Tensor, **options: object) -> SequenceLoss:
        loss = super().loss(token_BT, target_BT, **options)  # type: ignore[arg-type]
        return SequenceLoss(loss.total_B * loss.total_B.mean(), loss.tokens_B, loss.router_B)


def coupled() -> Decoder:
    model = Coupled(CONFIG, torch.Generator().manual_seed(0))
    model.train_in_full()
    return model


def frozen() -> Decoder:
    return build().requires_grad_(False)


def damaged() -> Decoder:
    model = build()
    model.norm.weight.data[3] = float("nan")
    return model


@pytest.mark.parametrize(
    ("model", "words"), [(frozen, "frozen"), (coupled, "couples"), (damaged, "damaged")]
)
def test_a_model_that_must_not_be_trained_is_refused(
    model: Callable[[], Decoder], words: str
) -> None:
    with pytest.raises(PreflightError, match=words):
        check_private_gradients(model(), RECIPE)


def test_a_weight_that_escapes_the_engine_is_refused() -> None:
    model = build()
    extra = torch.nn.Parameter(torch.ones(()))
    model.escaped = extra
    original = model.norm.forward
    model.norm.forward = lambda x: original(x) * extra  # type: ignore[method-assign]
    with pytest.raises(ClippingError, match="escaped"):
        check_private_gradients(model, RECIPE)


def test_clipping_that_does_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = client.preflight.add_clipped_gradients
    monkeypatch.setattr(
        client.preflight,
        "add_clipped_gradients",
        lambda model, chunk, norm, sums: honest(model, chunk, 2 * norm, sums),
    )
    with pytest.raises(PreflightError, match="does not hold"):
        check_private_gradients(build(), RECIPE)


def test_a_node_refuses_before_it_reserves(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: Decoder, recipe: Recipe) -> None:
        raise PreflightError("Expected this, got that.")

    with monkeypatch.context() as patch:
        patch.setattr("client.node.check_private_gradients", fails)
        with pytest.raises(PlanRefused, match="Expected this") as caught:
            hands.release("north", hands.plan())
    assert caught.value.code is PlanCode.NOT_TRAINABLE
    federation = hands.federation
    assert federation.bodies("north", "refusal")[-1]["code"] == "not-trainable"
    assert federation.bodies("north", "run-reserved") == []
    hands.release("north", hands.plan())  # the check is made again, and holds
    assert len(federation.bodies("north", "run-reserved")) == 1
