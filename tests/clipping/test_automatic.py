"""Automatic clipping against brute force, and its sensitivity, unit by unit."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from arion.mechanism import choose_cohort, choose_step
from arion.run_file import RunFile
from client.training import LocalTrainer, UnitRows
from models.decoder import Decoder
from models.tokenizer import Row
from models.training_settings import Recipe
from privacy.dp import clipping
from privacy.dp.clipping import Chunk, add_clipped_gradients
from privacy.dp.coefficients import AUTOMATIC_GAMMA, clip_coefficients
from privacy.dp.plan import PlanError, PrivateStep
from tests.clipping.small import batch, build, zeros

STEP = PrivateStep(
    clipping_norm=0.3, noise_multiplier=1.0, sampling_probability=0.5, expected_batch=2.0,
    honest_survivors=1, releases=1, unit="record", clipping="automatic",
)  # fmt: skip


def clipped(model: Decoder, chunk: Chunk, clip: float) -> Tensor:
    sums = zeros(model)
    add_clipped_gradients(model, chunk, clip, sums, clipping="automatic")
    return torch.cat([total.double().flatten() for total in sums.values()])


def unit_gradients(model: Decoder, chunk: Chunk) -> list[Tensor]:
    """Each unit's gradient by an autograd pass over its rows alone, fp64."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = []
    for unit in range(chunk.layout.units):
        rows = chunk.layout.unit_B == unit
        loss = model.loss(chunk.token_BT[rows], chunk.target_BT[rows])
        mean = loss.total_B.sum() / loss.tokens_B.sum()
        found = torch.autograd.grad(mean, parameters, materialize_grads=True)
        gradients.append(torch.cat([g.double().flatten() for g in found]))
    return gradients


def only(chunk: Chunk, kept: list[int]) -> Chunk:
    present_U = torch.tensor([unit in kept for unit in range(chunk.layout.units)])
    return Chunk(chunk.token_BT, chunk.target_BT, chunk.layout, present_U)


@pytest.mark.parametrize("variant", ["tied", "untied", "lora", "collapsed"])
@pytest.mark.parametrize("units", [[0, 1, 2, 3], [0, 0, 1, 2, 2, 2]], ids=["records", "patients"])
def test_the_sum_equals_brute_force(variant: str, units: list[int]) -> None:
    model, chunk = build(variant), batch(units)
    gradients = unit_gradients(model, chunk)
    expected = sum(0.3 * g / (g.norm() + AUTOMATIC_GAMMA) for g in gradients)
    assert float((clipped(model, chunk, 0.3) - expected).norm() / expected.norm()) < 1e-5


def changes(model: Decoder, chunk: Chunk, clip: float) -> list[float]:
    everyone = list(range(chunk.layout.units))
    whole = clipped(model, chunk, clip)
    rests = [[unit for unit in everyone if unit != gone] for gone in everyone]
    return [
        float((whole - clipped(model, only(chunk, rest), clip)).norm()) / clip for rest in rests
    ]


@pytest.mark.parametrize("clip", [1e-3, 1.0, 1e3])
def test_dropping_a_unit_moves_the_sum_by_at_most_the_sensitivity(clip: float) -> None:
    model, chunk = build("tied"), batch([0, 0, 1, 2])
    for change, gradient in zip(
        changes(model, chunk, clip), unit_gradients(model, chunk), strict=True
    ):
        norm = float(gradient.norm())
        assert change <= 1.001
        assert change == pytest.approx(norm / (norm + AUTOMATIC_GAMMA), abs=1e-3)


def test_a_rule_that_exceeds_the_bound_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaling by C / gamma, the norm left out, lets every unit exceed C."""
    monkeypatch.setattr(
        clipping,
        "clip_coefficients",
        lambda norm_U, c, _, present_U: present_U * c / AUTOMATIC_GAMMA,
    )
    assert min(changes(build("tied"), batch([0, 1, 2]), 1.0)) > 1.001


def test_no_norm_gets_past_the_bound() -> None:
    norm_U = torch.logspace(-30, 30, 2001)
    present_U = torch.ones(2001, dtype=torch.bool)
    for clip in (1e-3, 1.0, 1e3):
        length_U = (
            norm_U.double() * clip_coefficients(norm_U, clip, "automatic", present_U).double()
        )
        assert float(length_U.max()) <= clip * (1 + 1e-6)
    assert clip_coefficients(torch.zeros(1), 1.0, "automatic", present_U[:1]).isfinite().all()
    with pytest.raises(PlanError, match="finite clipping_norm"):
        clip_coefficients(norm_U, math.inf, "automatic", present_U)


def test_a_unit_that_is_not_finite_contributes_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    model, chunk = build("untied"), batch([0, 1, 2])
    without = clipped(model, only(chunk, [0, 2]), 0.3)
    chunk.token_BT[1, 3] = 63  # a token that only unit 1 holds
    model.embedding.data[63] = float("nan")
    assert torch.allclose(clipped(model, chunk, 0.3), without, rtol=0, atol=1e-7)


@pytest.mark.parametrize("way", ["once", "twice", "pieces"])
def test_the_trainer_follows_the_rule_of_the_step(way: str) -> None:
    model = build("tied")
    rows = tuple((Row(tuple(range(start, start + 11)), 1),) * 2 for start in (1, 20, 40))
    trainer = LocalTrainer(
        model, UnitRows(rows), Recipe(sequence_length=10, sequences_per_unit=2),
        chunk_sequences=1 if way == "pieces" else 2, two_passes=way == "twice",
    )  # fmt: skip
    fixed = STEP.model_copy(update={"clipping": "fixed"})
    for drawn in (np.array([place]) for place in range(3)):
        one = float(np.linalg.norm(trainer.clipped_sum(drawn, STEP)))
        plain = float(np.linalg.norm(trainer.clipped_sum(drawn, fixed.model_copy(
            update={"clipping_norm": 1e6}
        ))))  # fmt: skip
        assert one == pytest.approx(0.3 * plain / (plain + AUTOMATIC_GAMMA), rel=1e-4)


def test_the_run_file_chooses_the_rule_and_no_other_is_known() -> None:
    run = RunFile.model_validate(
        {"privacy": {"enabled": True, "clipping": "automatic", "epsilon": 0.5}}
    )
    step = choose_step(run, "record", 1000, choose_cohort(run.federation, 4), 1000)
    assert step.clipping == "automatic"
    fixed = step.model_copy(update={"clipping": "fixed"})
    assert (step.sensitivity, step.event()) == (fixed.sensitivity, fixed.event())
    with pytest.raises(ValidationError, match="clipping"):
        PrivateStep(**{**STEP.model_dump(), "clipping": "none"})
