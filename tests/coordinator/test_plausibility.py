"""The bound on a sum's norm: honest sums keep it, a member that does not clip breaks it."""

from typing import Any

import numpy as np
import pytest

import client.release
from coordinator.outcome import RoundOutcome, observing
from coordinator.plausibility import check_norm, largest_norm
from privacy.dp.lattice import decode, encode
from privacy.dp.noise import SecureGaussian
from privacy.dp.plan import PrivateStep
from privacy.secagg.aborts import AbortCode, SecAggAbort
from privacy.units import INSTITUTION
from tests.small_federation import SmallFederation
from tests.small_hands import Hands

LENGTH = 20_000


def plan_of(hands: Hands, **step: Any) -> Any:
    plan = hands.plan()
    changed = PrivateStep(**{**plan.step.model_dump(), **step})
    return plan.model_copy(update={"step": changed, "vector_length": LENGTH})


def opened(plan: Any, signal_D: np.ndarray, survivors: int) -> np.ndarray:
    """A sum of real encodings, the signal all from the first member."""
    words = [
        encode(signal_D if member == 0 else np.zeros(LENGTH, "<f4"), plan.step, SecureGaussian())
        for member in range(survivors)
    ]
    return decode(sum(words[1:], words[0]), plan.step)


def direction(length: float) -> np.ndarray:
    signal_D = np.random.default_rng(1).standard_normal(LENGTH).astype("<f4")
    return signal_D * np.float32(length / np.linalg.norm(signal_D))


def test_honest_sums_keep_the_bound_and_come_near_it(hands: Hands) -> None:
    plan = plan_of(hands)
    bound = largest_norm(plan, 4, 2.0)
    full_batch = plan.step.clipping_norm * plan.step.expected_batch * 2
    norms = [np.linalg.norm(opened(plan, direction(full_batch), 4)) for _ in range(20)]
    assert max(norms) < bound < 2 * min(norms)
    check_norm(opened(plan, direction(full_batch), 4), plan, 4, 2.0)


@pytest.mark.parametrize("unit", ["patient", INSTITUTION])
def test_a_sum_beyond_the_bound_is_refused(hands: Hands, unit: str) -> None:
    plan = plan_of(hands, unit=unit, sampling_probability=1.0)
    bound = largest_norm(plan, 4, 2.0)
    for sum_D in (direction(1.01 * bound), direction(bound) * np.float32("nan")):
        with pytest.raises(SecAggAbort, match="did not clip") as caught:
            check_norm(sum_D, plan, 4, 2.0)
        assert caught.value.code is AbortCode.BAD_NORM
    check_norm(direction(0.99 * bound), plan, 4, 2.0)


def test_an_institution_counts_once_and_more_batches_widen_the_bound(hands: Hands) -> None:
    records, whole = plan_of(hands), plan_of(hands, unit=INSTITUTION)
    assert largest_norm(whole, 4, 2.0) == largest_norm(whole, 4, 9.0)
    assert largest_norm(records, 4, 2.0) < largest_norm(records, 4, 9.0)
    quiet = replace_noise(records, 1e-3)
    units = 2 * records.step.expected_batch
    signal = 1.001 * records.step.clipping_norm * (units + 10 * units**0.5)
    assert largest_norm(quiet, 4, 2.0) == pytest.approx(signal, rel=1e-2)


def replace_noise(plan: Any, multiplier: float) -> Any:
    step = PrivateStep(**{**plan.step.model_dump(), "noise_multiplier": multiplier})
    return plan.model_copy(update={"step": step})


def test_without_noise_nothing_is_bounded(hands: Hands) -> None:
    plan = plan_of(hands, noise_multiplier=0.0, ring_bits=32)
    check_norm(direction(1e9), plan, 4, 2.0)


def test_a_member_that_does_not_clip_spoils_its_attempt_only(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def unclipped(x: Any, step: Any, source: Any) -> Any:
        made.append(1)
        return encode(1e4 * x if len(made) == 2 else x, step, source)

    monkeypatch.setattr(client.release, "encode", unclipped)
    outcomes: list[RoundOutcome] = []
    with observing(lambda outcome, state: outcomes.append(outcome)):
        state = federation.run()
    assert state.step == 3
    assert [(o.round, o.attempt, o.code) for o in outcomes] == [
        (1, 1, "bad-norm"), (1, 2, ""), (2, 1, ""), (3, 1, "")
    ]  # fmt: skip
    assert len(federation.bodies("north", "release-debited")) == 4
    assert len({o.model_digest for o in outcomes}) == 4
    federation.verified()
