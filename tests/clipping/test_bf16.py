"""bf16 activations under fp32 weights: what a unit adds stays within C, whatever was rounded.

A row of activations is scaled by its unit's coefficient and has to be bf16 again; the norm that a
unit is clipped by is therefore the most that its sum can have become.
"""

import pytest
import torch
from torch import Tensor

from models.decoder import Decoder
from models.ops import Slots
from privacy.dp import grouped_records, products, records
from privacy.dp.clipping import Chunk, add_clipped_gradients
from privacy.dp.grouped_records import GroupedRecord, Segments
from privacy.dp.records import LinearRecord, UnitLayout
from tests.clipping import small

UNITS = 6


def build(variant: str) -> Decoder:
    model = small.build(variant)
    model.compute_dtype = torch.bfloat16
    return model


def chunk(positions: int, present: list[bool], sequences: int = 1) -> Chunk:
    generator = torch.Generator().manual_seed(3)
    shape = (UNITS * sequences, positions + 1)
    token = torch.randint(0, 64, shape, generator=generator)
    layout = UnitLayout(torch.arange(UNITS).repeat_interleave(sequences), UNITS)
    return Chunk(token[:, :-1], token[:, 1:], layout, torch.tensor(present))


def alone(model: Decoder, positions: int, unit: int, clip: float) -> Tensor:
    """What one unit adds to the sums, fp64."""
    sums = small.zeros(model)
    present = [place == unit for place in range(UNITS)]
    add_clipped_gradients(model, chunk(positions, present), clip, sums)
    return torch.cat([total.double().flatten() for total in sums.values()])


@pytest.mark.parametrize("variant", ["tied", "untied", "lora"])
@pytest.mark.parametrize("positions", [4, 40], ids=["factors kept", "gradients kept"])
@pytest.mark.parametrize("clip", [1e-3, 0.05])
def test_every_unit_stays_within_the_clipping_norm_and_uses_it(
    variant: str, positions: int, clip: float
) -> None:
    model = build(variant)
    for unit in range(UNITS):
        assert 0.97 * clip <= float(alone(model, positions, unit, clip).norm()) <= 1.0001 * clip


def factors(columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """One unit whose gradient's terms cancel: what is left is small beside what rounding adds."""
    generator = torch.Generator().manual_seed(5)
    x_1TI = torch.randn(1, 8, columns, generator=generator)
    grad_1TO = torch.randn(1, 8, columns, generator=generator)
    x_1TI[:, 4:], grad_1TO[:, 4:] = x_1TI[:, :4] * 1.02, -grad_1TO[:, :4]
    return torch.zeros(columns, columns), x_1TI.bfloat16(), grad_1TO.bfloat16()


def added(record: LinearRecord, coefficient: float) -> float:
    total = torch.zeros_like(record.weight)
    record.add_weighted(torch.tensor([coefficient]), total)
    return float(total.norm())


def test_the_norm_covers_what_rounding_adds_to_terms_that_cancel() -> None:
    weight, x, grad = factors(64)
    record = LinearRecord(weight, x, grad, UnitLayout(torch.tensor([0]), 1))
    exact = float(record.squared_norms().sqrt())
    bound = exact + float(record.squared_rounding_U.sqrt())
    grown = [added(record, c) / c for c in torch.linspace(0.1, 0.9, 17).tolist()]
    assert max(grown) > 1.002 * exact  # the norm before rounding would be exceeded
    assert max(grown) <= bound


def slots_of(lengths: list[int]) -> Slots:
    """Three experts; tokens of four positions, so that the slots' sequences vary."""
    offsets = torch.tensor([0, *lengths]).cumsum(0).tolist()
    token = [torch.arange(length) * 16 // max(length, 1) for length in lengths]
    return Slots.of(offsets, torch.cat(token), 4)


@pytest.mark.parametrize("outputs", [8, 96])
@pytest.mark.parametrize("lengths", [[5, 0, 11], [1, 16, 16], [0, 0, 16]])
def test_one_kernel_for_all_segments_gives_what_single_products_give(
    outputs: int, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel of a GPU, checked where torch has one for CPU; it rounds to bf16."""
    generator = torch.Generator().manual_seed(2)
    slots, layout = slots_of(lengths), UnitLayout(torch.tensor([0, 1, 1, 2]), 3)
    x_MI = torch.randn(sum(lengths), 32, generator=generator).bfloat16()
    grad_MO = torch.randn(sum(lengths), outputs, generator=generator).bfloat16()
    weight, coefficient_U = torch.zeros(3, outputs, 32), torch.tensor([0.25, 1.0, 0.5])
    found = []
    for has_kernel in (True, False):
        monkeypatch.setattr(grouped_records, "has_grouped_kernel", lambda *_, it=has_kernel: it)
        record = GroupedRecord(weight, x_MI, grad_MO, Segments(slots, layout))
        squared_U, total = record.squared_norms(), torch.zeros_like(weight)
        record.add_weighted(coefficient_U, total)
        found.append((squared_U, total, record.squared_rounding_U))
    for by_kernel, single in zip(found[0][:2], found[1][:2], strict=True):
        torch.testing.assert_close(by_kernel, single, rtol=1e-2, atol=1e-2)
    holds_U = found[1][0] > 0
    assert (found[0][2] > found[1][2])[holds_U].all()  # the measure was rounded too


def test_coefficients_of_kept_bf16_gradients_are_never_rounded_up() -> None:
    coefficient_U = torch.rand(50, generator=torch.Generator().manual_seed(4))
    gradient_EUX = torch.eye(50).bfloat16()[None]
    total_EX = torch.zeros(1, 50)
    products.add_combination(total_EX, coefficient_U, gradient_EUX)
    assert (total_EX[0] <= coefficient_U).all()
    assert (total_EX[0] >= coefficient_U * (1 - 2**-7)).all()


def test_a_bound_left_out_lets_a_unit_exceed_the_clipping_norm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rejecting half: without the rounding term, some unit adds more than it may."""
    for module in (records, grouped_records):
        monkeypatch.setattr(module, "squared_rounding", lambda length, x: 0 * length)
    model = build("untied")
    sizes = [
        float(alone(model, positions, unit, 0.003).norm()) / 0.003
        for positions in (2, 3, 4)
        for unit in range(UNITS)
    ]
    assert max(sizes) > 1.0001
