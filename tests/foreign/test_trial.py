"""The trial of an unknown class: networks made to break each condition, one at a time."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.foreign.trial import UnfitError, frozen_layers

VOCABULARY, WIDTH = 20, 6


class Network(nn.Module):
    """Token by token, hence causal: embeds, maps, reads out."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.map = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def mapped(self, x_BTD: Tensor) -> Tensor:
        return self.map(x_BTD)

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        assert not use_cache
        return SimpleNamespace(logits=self.head(self.mapped(self.table(input_ids)).tanh()))


def test_a_layer_whose_rows_are_its_sequences_takes_an_adapter() -> None:
    assert frozen_layers(Network()) == {"map": "", "head": "it is the output head"}


class Acausal(Network):
    def mapped(self, x_BTD: Tensor) -> Tensor:
        return self.map(x_BTD) + x_BTD.mean(1, keepdim=True)


class Coupled(Network):
    def mapped(self, x_BTD: Tensor) -> Tensor:
        return self.map(x_BTD) - x_BTD.mean(0, keepdim=True).cumsum(1)


class WantsMore(Network):
    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        raise TypeError("pixel_values is missing")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Acausal, "depend on later tokens"),
        (Coupled, "depend on the other sequences of the batch"),
        (WantsMore, "tokens alone .*pixel_values"),
    ],
)
def test_predictions_that_see_more_than_their_own_past_are_refused(
    network: type[Network], message: str
) -> None:
    with pytest.raises(UnfitError, match=message):
        frozen_layers(network())


class Flattened(Network):
    def mapped(self, x_BTD: Tensor) -> Tensor:
        return self.map(x_BTD.flatten(0, 1)).view_as(x_BTD)


class Twice(Network):
    def mapped(self, x_BTD: Tensor) -> Tensor:
        return self.map(self.map(x_BTD))


class ByKeyword(Network):
    def mapped(self, x_BTD: Tensor) -> Tensor:
        return self.map(input=x_BTD)


class Swapped(Network):
    """Gives every sequence's activations to the other's row, and back: the logits are right."""

    def mapped(self, x_BTD: Tensor) -> Tensor:
        return self.map(x_BTD.flip(0)).flip(0)


class Shared(Network):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(WIDTH, WIDTH)
        self.other.weight = self.map.weight

    def mapped(self, x_BTD: Tensor) -> Tensor:
        return self.other(self.map(x_BTD))


class Squared(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.square(), self.bias)


class NotLinear(Network):
    def __init__(self) -> None:
        super().__init__()
        self.map = Squared(WIDTH, WIDTH)


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (Flattened, "its input of shape (10, 6) is not one row per sequence"),
        (Twice, "it is called 2 times for one batch"),
        (ByKeyword, "it is called 0 times for one batch"),
        (Swapped, "its rows hold more than their own sequence"),
        (Shared, "it shares its weight with another layer"),
        (NotLinear, "it computes something else than x W^T + b"),
    ],
)
def test_a_layer_that_would_have_wrong_norms_stays_frozen(network: type[Network], why: str) -> None:
    assert frozen_layers(network())["map"] == why


def test_a_router_stays_frozen() -> None:
    network = Network()
    network.gate = nn.Linear(WIDTH, WIDTH)
    network.mapped = lambda x_BTD: network.map(x_BTD) * network.gate(x_BTD)  # type: ignore[method-assign]
    assert frozen_layers(network)["gate"] == "it is a router"
