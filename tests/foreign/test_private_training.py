"""Other classes under the private engine: exact norms, no coupling, padding that no one sees."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.foreign.folder import open_foreign
from models.foreign.model import ForeignModel
from models.language_model import IGNORED
from models.lora import add_lora
from privacy.dp.clipping import Chunk, ClippingError, add_clipped_gradients, unit_losses
from privacy.dp.records import UnitLayout
from tests.foreign.families import FAMILIES

Family = Callable[[str], Path]
POSITIONS = 12


def adapted(folder: Path) -> ForeignModel:
    """The model with adapters that already change it."""
    model = open_foreign(folder)
    generator = torch.Generator().manual_seed(1)
    add_lora(model, 4, 8.0, generator)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.normal_(0, 0.1, generator=generator)
    return model


def batch(units: list[int], rows: slice = slice(None)) -> Chunk:
    generator = torch.Generator().manual_seed(7)
    token = torch.randint(1, 60, (len(units), POSITIONS + 1), generator=generator)
    target = token[:, 1:].clone()
    target[0, POSITIONS // 2 :] = IGNORED
    own = torch.tensor(units[rows])
    layout = UnitLayout(own - own[0], int(own[-1] - own[0]) + 1)
    present = torch.ones(layout.units, dtype=torch.bool)
    return Chunk(token[rows, :-1], target[rows], layout, present)


def gradients(model: ForeignModel, chunk: Chunk) -> dict[str, Tensor]:
    """By autograd alone, nothing recorded: of the summed losses of the chunk's units."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(unit_losses(model, chunk).sum(), list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


def clipped(model: ForeignModel, chunk: Chunk, clip: float) -> tuple[Tensor, dict[str, Tensor]]:
    sums = {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.requires_grad}
    return add_clipped_gradients(model, chunk, clip, sums).norm_U, sums


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.double().flatten() for value in values.values()])


@pytest.mark.parametrize("model_type", [*FAMILIES, "opt", "olmoe"])
@pytest.mark.parametrize(
    "units", [[0, 1, 2, 3], [0, 0, 1, 2, 2, 2]], ids=["one-sequence-each", "several"]
)
def test_norms_and_sums_equal_autograd_of_each_unit_alone(
    model_type: str, units: list[int], family: Family
) -> None:
    model = adapted(family(model_type))
    alone = [
        flat(gradients(model, batch(units, slice(units.index(u), units.index(u) + units.count(u)))))
        for u in sorted(set(units))
    ]
    expected_U = torch.stack([each.norm() for each in alone])
    clip = float(expected_U.median())  # so that some units are clipped and some are not
    norm_U, sums = clipped(model, batch(units), clip)
    torch.testing.assert_close(norm_U.double(), expected_U, rtol=1e-6, atol=0)
    expected = sum(each * min(1.0, clip / float(each.norm())) for each in alone)
    assert float((flat(sums) - expected).norm()) < 2e-6 * clip


@pytest.mark.parametrize("model_type", [*FAMILIES, "opt", "olmoe"])
def test_the_gradient_of_a_sequence_does_not_depend_on_the_others(
    model_type: str, family: Family
) -> None:
    model = adapted(family(model_type))
    together = batch([0, 1, 2, 3])
    alone = batch([0, 1, 2, 3], slice(2, 3))
    only_third = Chunk(together.token_BT, together.target_BT.clone(), together.layout,
                       together.present_U)  # fmt: skip
    only_third.target_BT[[0, 1, 3]] = IGNORED
    found, expected = flat(gradients(model, only_third)), flat(gradients(model, alone))
    assert float((found - expected).norm() / expected.norm()) < 5e-6


@pytest.mark.parametrize("model_type", FAMILIES)
def test_dropping_a_unit_moves_the_sum_by_at_most_the_sensitivity(
    model_type: str, family: Family
) -> None:
    model, chunk = adapted(family(model_type)), batch([0, 0, 1, 2, 2, 3])
    clip = (
        float(clipped(model, chunk, 1.0)[0].min()) / 2
    )  # so that every unit is clipped to exactly C
    whole = clipped(model, chunk, clip)[1]
    for gone in range(4):
        present = torch.arange(4) != gone
        rest = clipped(model, Chunk(chunk.token_BT, chunk.target_BT, chunk.layout, present), clip)[
            1
        ]
        assert float((flat(whole) - flat(rest)).norm()) / clip == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_padding_on_the_right_changes_nothing(model_type: str, family: Family) -> None:
    model = adapted(family(model_type))
    short = batch([0, 1], slice(1, 2))
    token = torch.zeros(1, POSITIONS + 9, dtype=torch.int64)
    target = torch.full_like(token, IGNORED)
    token[:, :POSITIONS], target[:, :POSITIONS] = short.token_BT, short.target_BT
    padded = Chunk(token, target, short.layout, short.present_U)
    torch.testing.assert_close(
        unit_losses(model, padded), unit_losses(model, short), rtol=1e-6, atol=0
    )
    found, expected = flat(gradients(model, padded)), flat(gradients(model, short))
    assert float((found - expected).norm() / expected.norm()) < 5e-6


def test_the_loss_is_plain_cross_entropy_of_each_sequence(family: Family) -> None:
    model = adapted(family("gpt2"))
    chunk = batch([0, 1])
    loss = model.loss(chunk.token_BT, chunk.target_BT)
    assert loss.tokens_B.tolist() == [POSITIONS // 2, POSITIONS]
    for row in range(2):
        log_TV = model(chunk.token_BT)[row].log_softmax(-1)
        kept = chunk.target_BT[row] != IGNORED
        expected = -log_TV[kept].gather(1, chunk.target_BT[row][kept][:, None]).sum()
        torch.testing.assert_close(loss.total_B[row], expected)


def test_dropout_stays_off(family: Family) -> None:
    model = adapted(family("gpt2"))  # its config.json asks for dropout of 0.1
    assert model.network.config.resid_pdrop == 0.1
    token_BT = batch([0, 1]).token_BT
    assert torch.equal(model.train()(token_BT), model(token_BT))
    assert not any(module.training for module in model.modules())


def test_an_unfrozen_weight_of_the_class_is_refused(family: Family) -> None:
    model = adapted(family("gpt2"))
    model.network.transformer.ln_f.weight.requires_grad_(True)
    with pytest.raises(ClippingError, match="autograd gradients for"):
        clipped(model, batch([0, 1]), 1.0)


def test_activations_that_are_no_rows_of_sequences_are_refused(family: Family) -> None:
    """OPT flattens before its feed-forward layers: an adapter there would have wrong norms."""
    model = adapted(family("opt"))
    layer = model.network.model.decoder.layers[0].fc1
    assert "model.decoder.layers.0.fc1" in model.source.frozen
    inner = next(iter(dict(model.adapted_layers()).values()))
    flattened = type(inner)(layer)
    flattened.lora_A = torch.nn.Parameter(torch.randn(4, 32))
    flattened.lora_B = torch.nn.Parameter(torch.randn(48, 4))
    flattened.lora_scale = 1.0
    model.network.model.decoder.layers[0].fc1 = flattened.requires_grad_(True)
    layer.requires_grad_(False)
    with pytest.raises(ClippingError, match="one row of activations per sequence"):
        clipped(model, batch([0, 1]), 1.0)
