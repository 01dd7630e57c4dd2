"""The server's optimiser against torch's, and what it refuses."""

import math

import pytest
import torch

from models.optimiser import OptimiserSettings, OptimiserState, adam_step, rate_factor

ROUNDS = 8
SETTINGS = [
    OptimiserSettings(),
    OptimiserSettings(learning_rate=0.1, beta1=0.0, beta2=0.5, epsilon=1e-3, warm_up=0.0),
    OptimiserSettings(learning_rate=0.01, beta1=0.99, beta2=0.999, warm_up=0.9),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_steps_are_those_of_torch(settings: OptimiserSettings) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(50, generator=generator))
    oracle = torch.optim.Adam(
        [weight],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
    )
    rates = torch.optim.lr_scheduler.LambdaLR(
        oracle, lambda done: rate_factor(done + 1, ROUNDS, settings.warm_up)
    )
    state = OptimiserState.start(weight.detach().clone())
    for _ in range(ROUNDS):
        sum_D = torch.randn(50, generator=generator, dtype=torch.float64) * 3
        weight.grad = (sum_D / 16.0).float()
        oracle.step()
        rates.step()
        state = adam_step(state, sum_D, 16.0, settings, ROUNDS)
        assert (state.vector_D - weight.detach()).abs().max() <= 1e-6
    assert state.step == ROUNDS


@pytest.mark.parametrize(
    ("warm_up", "expected"),
    [
        (0.0, [1.0, 0.75, 0.25]),
        (1.0, [1 / 3, 2 / 3 * 0.75, 0.25]),
    ],
)
def test_the_schedule_of_rates(warm_up: float, expected: list[float]) -> None:
    rates = [rate_factor(step, 3, warm_up) for step in (1, 2, 3)]
    assert rates == pytest.approx(expected)
    assert all(math.isfinite(rate) and 0 < rate <= 1 for rate in rates)


@pytest.mark.parametrize(
    "sum_D",
    [
        torch.tensor([0.0, math.nan]),
        torch.tensor([math.inf, 0.0]),
        torch.zeros(3),
        torch.zeros(1, 2),
    ],
    ids=["nan", "inf", "longer", "another shape"],
)
def test_a_sum_that_is_no_sum(sum_D: torch.Tensor) -> None:
    state = OptimiserState.start(torch.zeros(2))
    with pytest.raises(ValueError, match="Expected a finite sum of 2"):
        adam_step(state, sum_D, 1.0, OptimiserSettings(), 3)


def test_a_step_does_not_change_the_state_before_it() -> None:
    state = OptimiserState.start(torch.zeros(2))
    after = adam_step(state, torch.ones(2), 1.0, OptimiserSettings(), 3)
    assert (state.step, after.step) == (0, 1)
    assert not state.vector_D.any()
    assert not state.first_D.any()
    assert after.vector_D.all()


def test_a_state_returns_from_its_bytes_exactly() -> None:
    vector_D = torch.tensor([0.5, -2.0, 3.0])
    state = adam_step(OptimiserState.start(vector_D), vector_D, 4.0, OptimiserSettings(), 9)
    again = OptimiserState.from_bytes(state.to_bytes())
    assert again.step == state.step == 1
    for name in ("vector_D", "first_D", "second_D"):
        assert torch.equal(getattr(again, name), getattr(state, name))
