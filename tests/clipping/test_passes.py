"""Long units in pieces and chunks in two passes: the same norms and sums as in one pass."""

import math
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from benchmarks.harness import peak_mib
from models.decoder import Decoder
from models.language_model import IGNORED
from privacy.dp.clipping import Chunk, ChunkOutcome, ClippingError, add_clipped_gradients
from privacy.dp.passes import add_clipped_twice, add_clipped_unit
from privacy.dp.plan import Clipping, PrivateStep
from privacy.dp.records import UnitLayout
from tests.clipping.small import CONFIG, batch, build, zeros

Sums = dict[str, Tensor]


def compare(model: Decoder, chunk: Chunk, clip: float, clipped: Callable[[Sums], Tensor]) -> None:
    expected, found = zeros(model), zeros(model)
    norms = add_clipped_gradients(model, chunk, clip, expected).norm_U
    torch.testing.assert_close(clipped(found), norms, rtol=2e-6, atol=0)
    for name, total in found.items():
        torch.testing.assert_close(total, expected[name], rtol=1e-4, atol=2e-6, msg=name)
    assert all(parameter.grad is None for parameter in model.parameters())


VARIANTS = ["tied", "untied", "lora", "checkpointed"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("units", [[0, 1, 2, 3], [0, 0, 1, 2, 2, 2]], ids=["records", "patients"])
@pytest.mark.parametrize("clip", [0.05, 1e3], ids=["clipped", "whole"])
def test_two_passes_add_what_one_adds(variant: str, units: list[int], clip: float) -> None:
    model, chunk = build(variant), batch(units)
    compare(
        model, chunk, clip, lambda sums: add_clipped_twice(model, chunk, clip, sums).norm_U
    )  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sequences", [1, 2, 4, 5])
@pytest.mark.parametrize("clip", [0.05, 1e3], ids=["clipped", "whole"])
def test_a_unit_in_pieces_is_clipped_as_one(variant: str, sequences: int, clip: float) -> None:
    model, chunk = build(variant), batch([0, 0, 0, 0, 0])
    compare(
        model,
        chunk,
        clip,
        lambda sums: add_clipped_unit(model, chunk, clip, sums, sequences).norm_U,
    )


def length(sums: Sums) -> float:
    return float(torch.cat([total.flatten() for total in sums.values()]).norm())


def test_a_unit_whose_pieces_were_clipped_apart_would_exceed_the_clipping_norm() -> None:
    model, whole, clip = build("tied"), batch([0, 0, 0, 0]), 1e-3
    together, apart = zeros(model), zeros(model)
    add_clipped_unit(model, whole, clip, together, 2)
    single = UnitLayout(torch.tensor([0, 0]), 1)
    for begin in (0, 2):
        rows = slice(begin, begin + 2)
        part = Chunk(whole.token_BT[rows], whole.target_BT[rows], single, whole.present_U)
        add_clipped_unit(model, part, clip, apart, 2)
    assert length(together) == pytest.approx(clip, rel=1e-4)
    assert length(apart) > 1.3 * clip


def test_absent_units_add_nothing() -> None:
    model, chunk = build("tied"), batch([0, 0])
    absent = Chunk(chunk.token_BT, chunk.target_BT, chunk.layout, torch.tensor([False]))
    sums = zeros(model)
    add_clipped_unit(model, absent, 1.0, sums, 1)
    add_clipped_twice(model, absent, 1.0, sums)
    assert length(sums) == 0


def poisoned() -> tuple[Decoder, Chunk]:
    """Unit 1 alone holds a token whose embedding is not a number."""
    model, chunk = build("untied"), batch([0, 1, 2])
    model.embedding.data[63] = float("nan")
    token = chunk.token_BT.clone()
    token[1, 3] = 63
    return model, Chunk(token, chunk.target_BT, chunk.layout, chunk.present_U)


def test_an_infinite_unit_adds_nothing_in_two_passes_and_spoils_nothing() -> None:
    model, chunk = poisoned()
    expected, found = zeros(model), zeros(model)
    add_clipped_gradients(model, chunk, 0.5, expected)
    assert not torch.isfinite(add_clipped_twice(model, chunk, 0.5, found).norm_U[1])
    for name, total in found.items():
        torch.testing.assert_close(total, expected[name], rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("positions", [4, 40], ids=["factors kept", "gradients kept"])
@pytest.mark.parametrize("add", [add_clipped_gradients, add_clipped_twice])
def test_an_infinite_unit_spoils_none_of_fewer_sequences_than_others(
    positions: int, add: Callable[..., ChunkOutcome]
) -> None:
    """Units of one, two and three sequences, padded to three: padding must hold nobody's rows."""
    model, chunk = build("untied"), batch([0, 1, 1, 2, 2, 2], positions)
    expected = add(model, chunk, 0.5, zeros(model)).norm_U
    model.embedding.data[63] = float("nan")
    chunk.token_BT[0, 1] = 63  # unit 0 alone holds it
    sums = zeros(model)
    norm_U = add(model, chunk, 0.5, sums).norm_U
    assert not torch.isfinite(norm_U[0])
    torch.testing.assert_close(norm_U[1:], expected[1:], rtol=1e-5, atol=0)
    assert 0.5 < length(sums) <= 2 * 0.5 * 1.001


def without_targets(chunk: Chunk, row: int) -> Chunk:
    target = chunk.target_BT.clone()
    target[row] = IGNORED
    return Chunk(chunk.token_BT, target, chunk.layout, chunk.present_U)


@pytest.mark.parametrize("clipped", [add_clipped_gradients, add_clipped_twice])
@pytest.mark.parametrize("rule", ["fixed", "automatic"])
def test_a_unit_without_targets_adds_nothing(
    clipped: Callable[..., ChunkOutcome], rule: Clipping
) -> None:
    model, chunk = build("tied"), without_targets(batch([0, 1, 2]), 1)
    absent = Chunk(chunk.token_BT, chunk.target_BT, chunk.layout, torch.tensor([True, False, True]))
    sums, expected = zeros(model), zeros(model)
    assert float(clipped(model, chunk, 0.5, sums, clipping=rule).norm_U[1]) < 1e-12
    clipped(model, absent, 0.5, expected, clipping=rule)
    for name, total in sums.items():
        torch.testing.assert_close(total, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_pieces_without_targets_add_nothing() -> None:
    model, sums = build("tied"), zeros(build("tied"))
    nothing = without_targets(without_targets(batch([0, 0]), 0), 1)
    outcome = add_clipped_unit(model, nothing, 0.5, sums, 1)
    assert (float(outcome.norm_U), float(outcome.loss_U), length(sums)) == (0, 0, 0)
    chunk = without_targets(batch([0, 0, 0]), 1)
    compare(model, chunk, 0.5, lambda sums: add_clipped_unit(model, chunk, 0.5, sums, 1).norm_U)


def test_automatic_clipping_in_two_passes_cannot_overflow_in_the_second() -> None:
    """The head's rows are huge and a norm's weights tiny: between them gradients near the largest.

    Weighted by more than 1000 (of C / gamma = 10,000) they leave fp32 in the second pass only.
    """
    model, chunk = build("untied"), batch([0, 1, 2])
    model.requires_grad_(False)
    model.blocks[0].attention_norm.weight.requires_grad_(True)
    model.head.data.mul_(1e37)
    model.norm.weight.data.fill_(1.2e-38)
    expected, found = zeros(model), zeros(model)
    add_clipped_gradients(model, chunk, 100.0, expected, clipping="automatic")
    norm_U = add_clipped_twice(model, chunk, 100.0, found, clipping="automatic").norm_U
    assert 0 < float(norm_U.max()) < math.inf
    for name, total in found.items():
        torch.testing.assert_close(total, expected[name], rtol=1e-3, atol=1e-3, msg=name)


def test_where_nothing_is_finite_nothing_is_added() -> None:
    model, chunk = build("untied"), batch([0, 0, 0])
    model.norm.weight.data.fill_(float("inf"))
    sums = zeros(model)
    add_clipped_twice(model, chunk, 0.5, sums)
    add_clipped_unit(model, chunk, 0.5, sums, 2)
    assert length(sums) == 0


def test_two_passes_refuse_a_weight_outside_the_seam() -> None:
    model = build("tied")
    model.escaped = torch.nn.Parameter(torch.ones(()))
    original = model.norm.forward
    model.norm.forward = lambda x: original(x) * model.escaped
    with pytest.raises(ClippingError, match="escaped"):
        add_clipped_twice(model, batch([0, 1]), 1.0, zeros(model))


def test_two_passes_refuse_what_autograd_would_round_and_what_it_would_miss() -> None:
    model, chunk = build("untied"), batch([0, 1])
    model.compute_dtype = torch.bfloat16
    with pytest.raises(ClippingError, match="fp32"):
        add_clipped_twice(model, chunk, 1.0, zeros(model))
    model.compute_dtype = None
    model.blocks[1].attention.qkv = model.blocks[0].attention.qkv
    with pytest.raises(ClippingError, match="used once"):
        add_clipped_twice(model, chunk, 1.0, zeros(model))
    twice = build("untied")  # one name, two uses
    twice.blocks[1].attention.forward = twice.blocks[0].attention.forward
    with pytest.raises(ClippingError, match="used once"):
        add_clipped_twice(twice, chunk, 1.0, zeros(twice))
    with pytest.raises(ClippingError, match="one unit"):
        add_clipped_unit(build("tied"), chunk, 1.0, zeros(build("tied")), 1)


@pytest.mark.parametrize("clip", [0.0, -1.0, 1e-10, math.nan])
def test_a_clipping_norm_that_squares_cannot_be_held_against_is_refused(clip: float) -> None:
    model = build("tied")
    with pytest.raises(ClippingError, match="clipping_norm"):
        add_clipped_gradients(model, batch([0]), clip, zeros(model))
    with pytest.raises(ValidationError):
        PrivateStep(
            clipping_norm=clip, noise_multiplier=1.0, sampling_probability=0.5, expected_batch=2.0,
            honest_survivors=1, releases=1, unit="record",
        )  # fmt: skip


def test_two_passes_hold_less() -> None:
    """Short sequences of a deep model: its layers' factors are most of what one pass holds."""
    wide = {"hidden_size": 128, "head_dim": 32, "expert_hidden_size": 192, "layers": 10}
    model = build("checkpointed", CONFIG.model_copy(update=wide))
    chunk, sums = batch(list(range(32)), 32), zeros(model)
    once = peak_mib(lambda: add_clipped_gradients(model, chunk, 1.0, sums))
    twice = peak_mib(lambda: add_clipped_twice(model, chunk, 1.0, sums))
    assert twice < 0.5 * once
