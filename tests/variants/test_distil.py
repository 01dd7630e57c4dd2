"""Distillation: the chunked divergence against the whole one, and what training does and does not.

A student that learns must come nearer on text it was not trained on; one whose teacher says nothing
true, or that takes no step, must not.
"""

from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models import cross_entropy
from models.config import ModelConfig
from models.decoder import Decoder
from models.pretrain import warm_up
from models.snapshot import Snapshot, SnapshotError
from models.training_settings import WarmUp
from models.variants import distil as module
from models.variants.dense import dense_student
from models.variants.distil import (
    Distilling,
    Learnt,
    distil,
    lesson_of,
    standing,
    token_kl,
    training_flops,
)
from models.variants.extras import VariantError

CONFIG = ModelConfig(
    vocab_size=24, hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, experts=4,
    experts_per_token=2, expert_hidden_size=24, max_positions=64, initializer_range=0.05,
)  # fmt: skip
SETTINGS = Distilling(steps=60, batch=8, sequence_length=24, learning_rate=3e-3)


def stream() -> Tensor:
    """Each token follows from the two before it, but for one in seven, which is drawn."""
    generator = torch.Generator().manual_seed(2)
    drawn = torch.randint(0, 23, (4000,), generator=generator).tolist()
    tokens = [1, 2]
    for place in range(4000):
        following = (5 * tokens[-1] + 2 * (tokens[-2] % 2) + 1) % 23
        tokens.append(drawn[place] if place % 7 == 0 else following)
    return torch.tensor(tokens, dtype=torch.int32)


LESSON = lesson_of(stream(), SETTINGS.sequence_length)


@pytest.fixture(scope="module")
def teacher() -> Decoder:
    model = Decoder(CONFIG, torch.Generator().manual_seed(0))
    recipe = WarmUp(steps=200, batch=8, sequence_length=24, learning_rate=1e-2)
    warm_up(model, LESSON.stream, recipe, torch.Generator().manual_seed(1))
    return model


def student_of(teacher: Decoder) -> Decoder:
    return dense_student(teacher, (0, 1), ((0, 1), (2, 3)), torch.ones(2, 4).double())


def taught(
    teacher: Decoder, student: Decoder, settings: Distilling = SETTINGS, **options: object
) -> Learnt:
    generator = torch.Generator().manual_seed(3)
    return distil(teacher, student, LESSON, settings, generator=generator, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [1, 5, 1000], ids=["ones", "uneven", "whole"])
def test_the_chunked_divergence_and_its_gradients_equal_the_whole_one(tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    student, taught_by = (torch.randn(23, 8, generator=generator) for _ in range(2))
    head, teacher_head = (torch.randn(50, 8, generator=generator) for _ in range(2))
    student.requires_grad_()
    head.requires_grad_()
    log_p = (taught_by @ teacher_head.T).log_softmax(-1)
    whole = (log_p.exp() * (log_p - (student @ head.T).log_softmax(-1))).sum(-1)
    scale = torch.rand(23, generator=generator)
    with mock.patch.object(cross_entropy, "CHUNK_BYTES", 4 * 50 * tokens):
        ours = token_kl(student, head, taught_by, teacher_head)
        torch.testing.assert_close(ours, whole, rtol=1e-6, atol=1e-6)
        grads = [
            torch.autograd.grad((loss * scale).sum(), [student, head]) for loss in (whole, ours)
        ]
        with torch.no_grad():
            assert torch.equal(token_kl(student, head, taught_by, teacher_head), ours)
    for expected, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_divergence_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(9, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    head = torch.randn(50, 8, dtype=torch.float64, generator=generator)
    p, q = (torch.distributions.Categorical(logits=x @ head.T) for x in (a, b))
    expected = torch.distributions.kl_divergence(p, q)
    torch.testing.assert_close(token_kl(b, head, a, head), expected, rtol=1e-12, atol=1e-12)


def test_never_more_logits_than_a_chunk_lie_in_memory() -> None:
    """Every tensor that autograd keeps, and every product with a head, is of one chunk at most."""
    rows: list[int] = []
    original = module._kl

    def watched(student_CD: Tensor, *others: Tensor) -> Tensor:
        rows.append(len(student_CD))
        return original(student_CD, *others)

    kept: list[int] = []
    student, head = torch.randn(40, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)

    def keep(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    with (
        mock.patch.object(cross_entropy, "CHUNK_BYTES", 4 * 50 * 7),
        mock.patch.object(module, "_kl", watched),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
    ):
        loss = token_kl(student, head, torch.randn(40, 8), torch.randn(50, 8)).sum()
    assert max(kept, default=0) <= 50 * 8  # a head, never logits
    loss.backward()
    assert sorted(rows) == [5, 5] + [7] * 10  # each chunk forward, and again for backward


def test_held_out_blocks_are_every_twentieth_and_never_drawn() -> None:
    tokens = torch.arange(20 * 9 * 3 + 5, dtype=torch.int32)
    lesson = lesson_of(tokens, 8)
    assert lesson.heldout.shape == (3, 9)
    assert lesson.heldout[:, 0].tolist() == [19 * 9, 39 * 9, 59 * 9]
    assert not set(lesson.heldout.flatten().tolist()) & set(lesson.stream.tolist())
    assert len(lesson.stream) + lesson.heldout.numel() == len(tokens)
    assert lesson.heldout_tokens == 24
    with pytest.raises(VariantError, match="Expected at least 180 tokens"):
        lesson_of(tokens[:179], 8)


def test_what_is_measured_is_the_mean_over_held_out_tokens(teacher: Decoder) -> None:
    student = student_of(teacher)
    found, teacher_loss = standing(teacher, student, LESSON.heldout)
    token, target = LESSON.heldout[:, :-1], LESSON.heldout[:, 1:]
    with torch.no_grad():
        q, p = (model(token).double().log_softmax(-1) for model in (student, teacher))
    assert found.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-5)
    for said, log in ((found.loss, q), (teacher_loss, p)):
        assert said == pytest.approx(
            float(F.nll_loss(log.flatten(0, 1), target.flatten())), rel=1e-5
        )


def test_distillation_brings_a_student_nearer_on_text_it_was_not_trained_on(
    teacher: Decoder,
) -> None:
    student = student_of(teacher)
    before = [p.clone() for p in teacher.parameters()]
    found = taught(teacher, student)
    assert found.after.kl < 0.5 * found.before.kl
    assert found.after.loss < found.before.loss
    assert found.teacher_loss < found.after.loss + 0.05
    assert all(torch.equal(p, b) for p, b in zip(teacher.parameters(), before, strict=True))
    for block in student.blocks:
        assert not block.experts.router.weight.any()  # nothing to choose, nothing to train


def test_without_a_step_or_with_a_teacher_that_knows_nothing_it_does_not(teacher: Decoder) -> None:
    idle = taught(teacher, student_of(teacher), Distilling(**{**SETTINGS.model_dump(), "steps": 0}))
    assert idle.after == idle.before
    ignorant = Decoder(CONFIG, torch.Generator().manual_seed(9))
    student = student_of(teacher)
    taught(ignorant, student)
    misled, _ = standing(teacher, student, LESSON.heldout)
    assert misled.kl > idle.before.kl


def test_a_student_learns_from_its_teacher_not_from_the_text(teacher: Decoder) -> None:
    """Of a teacher with two words exchanged it learns the exchange."""
    crossed = Decoder(CONFIG)
    crossed.load_state_dict(teacher.state_dict())
    crossed.head = torch.nn.Parameter(teacher.head.detach().clone())
    crossed.head.data[[3, 7]] = crossed.head.data[[7, 3]]
    student = student_of(teacher)
    found = taught(crossed, student)
    assert found.after.kl < found.before.kl
    assert found.after.loss > taught(teacher, student_of(teacher)).after.loss + 0.1


class Killed(Exception):  # noqa: N818
    """The machine stops here."""


@pytest.mark.parametrize("stop", [1, 20, 33, 59])
def test_a_killed_distillation_goes_on_with_the_same_bits(
    stop: int, teacher: Decoder, tmp_path: Path
) -> None:
    whole = student_of(teacher)
    expected = taught(teacher, whole)

    def progress(step: int, kl: float) -> None:
        if step == stop:
            raise Killed

    snapshot = Snapshot(tmp_path / "s.safetensors", 20, "this run")
    with pytest.raises(Killed):
        taught(teacher, student_of(teacher), snapshot=snapshot, progress=progress)
    steps: list[int] = []
    again = student_of(teacher)
    found = taught(teacher, again, snapshot=snapshot, progress=lambda step, kl: steps.append(step))
    assert steps[0] == stop // 20 * 20 + 1
    assert found == expected
    for ours, theirs in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    # What is finished is not trained again, and is nobody else's.
    done = student_of(teacher)
    assert taught(teacher, done, snapshot=snapshot, progress=progress_of_none) == expected
    with pytest.raises(SnapshotError, match="another run's"):
        taught(teacher, student_of(teacher), snapshot=replace(snapshot, run="another"))


def progress_of_none(step: int, kl: float) -> None:
    raise AssertionError(step)


def test_the_last_step_is_kept_whatever_the_interval(teacher: Decoder, tmp_path: Path) -> None:
    snapshot = Snapshot(tmp_path / "s.safetensors", 1000, "this run")
    first = taught(teacher, student_of(teacher), snapshot=snapshot)
    again = taught(teacher, student_of(teacher), snapshot=snapshot, progress=progress_of_none)
    assert again == first


def test_a_divergence_that_is_no_number_ends_it(teacher: Decoder) -> None:
    student = student_of(teacher)
    student.norm.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        taught(teacher, student)
    wild = Distilling(**{**SETTINGS.model_dump(), "learning_rate": 1e30})
    with pytest.raises(VariantError, match=r"at step \d+.*Lower --distil-rate"):
        taught(teacher, student_of(teacher), wild)


def test_floating_point_operations_count_what_a_token_is_multiplied_with() -> None:
    student = CONFIG.model_copy(
        update={"experts": 1, "experts_per_token": 1, "expert_hidden_size": 48}
    )
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32  # query, key and value, output
    norms = 2 * 32 + 2 * 16
    common = 2 * (attention + norms) + 32 + 24 * 32
    sparse, dense = (
        common + 2 * (3 * 32 * 48 + rows * 32) for rows in (4, 1)
    )  # experts that a token uses, and the router's rows
    assert training_flops(CONFIG, student, 10) == 10 * (2 * sparse + 6 * dense + 4 * 24 * 32)
