"""A step to vary, and seeded sources: every draw in these tests is reproducible."""

from collections.abc import Callable

import pytest

from privacy.dp.keystream import derive_seeded_key
from privacy.dp.noise import SeededGaussian
from privacy.dp.plan import PrivateStep


@pytest.fixture
def make_step() -> Callable[..., PrivateStep]:
    def make(**changes: object) -> PrivateStep:
        values = {
            "clipping_norm": 1.5,
            "noise_multiplier": 0.8,
            "sampling_probability": 0.01,
            "expected_batch": 64.0,
            "honest_survivors": 3,
            "releases": 1000,
            "unit": "record",
        }
        return PrivateStep.model_validate(values | changes)

    return make


@pytest.fixture
def gaussian() -> Callable[..., SeededGaussian]:
    return lambda *labels: SeededGaussian(derive_seeded_key(20240501, *labels))
