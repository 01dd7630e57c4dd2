"""What a federated step computes: the pooled central step, the survivors' encodings, and noise."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2

import client.entropy
from coordinator.outcome import RoundOutcome, observing
from models.optimiser import OptimiserState, adam_step
from models.tokenizer import stack_rows
from models.training_settings import OptimiserSettings
from models.vector import read_vector
from privacy.dp.lattice import decode, release_variance
from privacy.dp.noise import SecureGaussian, SeededGaussian
from privacy.dp.plan import PrivateStep
from privacy.rounds import RoundPlan
from privacy.secagg.coordinator import StreamingSum
from tests.small_federation import NAMES, NO_NOISE, STEP, SmallFederation, digest_of
from tests.small_hands import take_in_hand


def planned(federation: SmallFederation) -> RoundPlan:
    """The plan of round 1, as far as seeded draws depend on it."""
    hands = take_in_hand(federation)
    for node in hands.nodes.values():
        node.close()
    return hands.plan()


def pooled_gradient(federation: SmallFederation, plan: RoundPlan) -> torch.Tensor:
    """Plain autograd over all drawn units in one place: the gradient of the sum of unit losses."""
    model = federation.trainer(NAMES[0]).model
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = torch.zeros(())
    for name in NAMES:
        trainer = federation.trainer(name)
        for index in federation.drawn(name, plan):
            rows = trainer.units.rows[index]
            loss = model.loss(*stack_rows(rows, 24))
            total = total + loss.total_B.sum() / loss.tokens_B.sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)])


def test_a_federated_step_is_the_pooled_central_step(
    make_federation: Callable[..., SmallFederation], opened: list[Any]
) -> None:
    # Adam's epsilon above the lattice's rounding: else it would normalise rounding errors.
    adam = OptimiserSettings(epsilon=1e-3)
    step = {**NO_NOISE, "sampling_probability": 0.9}
    federation = make_federation(step, rounds=1, optimiser=adam)
    plan = planned(federation)
    vector_D = read_vector(federation.trainer(NAMES[0]).model)
    state = federation.run()

    central_D = pooled_gradient(federation, plan)
    released_D = torch.from_numpy(decode(opened[0].words, plan.step)).float()
    assert (released_D - central_D).norm() <= 1e-5 * central_D.norm()
    start = OptimiserState.start(vector_D)
    after_D = adam_step(start, central_D, 24.0, adam, 1).vector_D
    assert (state.vector_D - after_D).norm() <= 1e-5 * after_D.norm()
    assert (after_D - vector_D).norm() >= 1e-3 * after_D.norm()


@pytest.mark.parametrize("step", [{}, NO_NOISE], ids=["noise", "no noise"])
@pytest.mark.parametrize(
    ("silent", "in_sum"),
    [
        (("query.survivors", "query.unmask"), NAMES),
        (("query.unmask",), NAMES),
        (("train.upload",), ("east", "south", "west")),
    ],
    ids=["after upload", "after signing", "before upload"],
)
def test_the_opened_sum_is_that_of_the_survivors_encodings(
    make_federation: Callable[..., SmallFederation],
    opened: list[Any],
    step: dict[str, Any],
    silent: tuple[str, ...],
    in_sum: tuple[str, ...],
) -> None:
    federation = make_federation(step, rounds=1)
    plan = planned(federation)
    federation.run(lambda name, action: name == "north" and action in silent)
    (total,) = opened
    expected = sum(federation.encoding(name, plan) for name in in_sum)
    assert total.survivors == in_sum
    assert total.words.dtype == expected.dtype
    assert np.array_equal(total.words, expected)


@pytest.mark.parametrize("survivors", [3, 4])
def test_the_accounted_noise_is_that_of_the_trusted_server_at_least(survivors: int) -> None:
    """z = 1.2 at C = 1 (scaled for 1.001), h = 2 honest survivors, a lattice of sigma / 4."""
    share = (1.2 * 1.001) ** 2 / 2
    assert release_variance(STEP, survivors) == pytest.approx(
        survivors * share * (1 + 1 / (12 * 4**2)), rel=1e-12
    )
    assert release_variance(STEP, survivors) >= 1.2**2


def has_the_accounted_noise(noise_D: np.ndarray, step: PrivateStep, survivors: int) -> bool:
    """Chi-square interval of the variance, at a level of one in a million."""
    degrees = len(noise_D)
    low, high = chi2.ppf([5e-7, 1 - 5e-7], degrees) / degrees
    ratio = np.mean(noise_D**2) / release_variance(step, survivors)
    return bool(low <= ratio <= high)


class Weak:
    """Noise of a tenth of its scale."""

    def __init__(self, source: Any) -> None:
        self.seeded, self._source = source.seeded, source

    def normal(self, count: int) -> np.ndarray:
        return self._source.normal(count) / 10


@pytest.mark.parametrize("seed", [7, None], ids=["seeded", "csprng"])
@pytest.mark.parametrize("weak", [False, True], ids=["honest", "a tenth"])
@pytest.mark.parametrize("gone", [(), ("north",)], ids=["all", "one gone"])
def test_the_noise_of_the_sum(
    make_federation: Callable[..., SmallFederation],
    opened: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    seed: int | None,
    weak: bool,
    gone: tuple[str, ...],
) -> None:
    if weak:
        monkeypatch.setattr(client.entropy, "SeededGaussian", lambda key: Weak(SeededGaussian(key)))
        monkeypatch.setattr(client.entropy, "SecureGaussian", lambda: Weak(SecureGaussian()))
    federation = make_federation({"sampling_probability": 1.0}, seed, rounds=1)
    federation.run(lambda name, action: name in gone and action == "train.upload")
    step = federation.settings.step
    present = [name for name in NAMES if name not in gone]
    trainers = [federation.trainer(name) for name in present]
    everyone = np.arange(trainers[0].unit_count)
    true_D = sum(trainer.clipped_sum(everyone, step).astype(np.float64) for trainer in trainers)
    noise_D = decode(opened[0].words, step) - true_D
    assert has_the_accounted_noise(noise_D, step, len(present)) is not weak


def byte_statistic(words: np.ndarray) -> float:
    """Probability of bytes at least as uneven, were they uniform."""
    counts = np.bincount(np.frombuffer(words.tobytes(), np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), 255))


def test_the_coordinator_is_handed_uniform_words(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(federation)
    handed: dict[str, np.ndarray] = {}
    original = StreamingSum.add

    def spy(self: StreamingSum, upload: Any, words: np.ndarray) -> bool:
        handed.setdefault(upload.node, words.copy())
        return original(self, upload, words)

    monkeypatch.setattr(StreamingSum, "add", spy)
    federation.run()
    assert set(handed) == set(NAMES)
    for name, words in handed.items():
        encoding = federation.encoding(name, plan)
        assert byte_statistic(words) > 1e-6
        assert byte_statistic(words - encoding) > 1e-6  # the mask itself
        assert byte_statistic(encoding) < 1e-100  # the same test tells an encoding
        assert np.mean(words == encoding) < 1e-3


def test_sums_of_fewer_members_stay_uniform(federation: SmallFederation) -> None:
    hands = take_in_hand(federation)
    plan = hands.plan()
    words = {
        name: np.frombuffer(hands.release(name, plan).words, "<u2").astype("<u2") for name in NAMES
    }
    for node in hands.nodes.values():
        node.close()
    for group in (("east", "west"), ("east", "north", "south"), NAMES):
        assert byte_statistic(sum((words[n] for n in group), np.zeros(1, "<u2"))) > 1e-6


def test_a_narrow_ring_gives_the_same_run_in_fewer_bytes(
    make_federation: Callable[..., SmallFederation],
) -> None:
    received: dict[int, int] = {}
    digests = set()
    for ring_bits in (16, 12, 8):
        federation = make_federation({"ring_bits": ring_bits})
        outcomes: list[RoundOutcome] = []
        with observing(lambda outcome, state, found=outcomes: found.append(outcome)):
            digests.add(digest_of(federation.run()))
        received[ring_bits] = outcomes[0].received_bytes
        federation.verified()
    assert len(digests) == 1
    saved = len(NAMES) * len(read_vector(federation.trainer(NAMES[0]).model)) // 2
    assert received[16] - received[12] == pytest.approx(saved, rel=0.01)
    assert received[12] - received[8] == pytest.approx(saved, rel=0.01)
