"""The server's optimiser against torch's, and what it refuses."""

import math

import pytest
import torch

from models import optimiser
from models.optimiser import OptimiserState, adam_step, rate_factor
from models.training_settings import OptimiserSettings

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


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_coordinate_is_found_wherever_it_is(bad: float) -> None:
    length = 203  # vectors of the processor, and a rest
    state = OptimiserState.start(torch.zeros(length))
    for place in range(length):
        sum_D = torch.linspace(-1.0, 1.0, length)
        sum_D[place] = bad
        with pytest.raises(ValueError, match="finite"):
            adam_step(state, sum_D, 1.0, OptimiserSettings(), 3)


@pytest.mark.parametrize("average_decay", [0.0, 0.5])
def test_a_step_in_place_is_the_same_step(average_decay: float) -> None:
    settings = OptimiserSettings(average_decay=average_decay, bias_correction=True)
    generator = torch.Generator().manual_seed(3)
    start_D = torch.randn(70_001, generator=generator)  # more than a piece
    apart, in_place = OptimiserState.start(start_D), OptimiserState.start(start_D.clone())
    for _ in range(3):
        sum_D, places = torch.randn(70_001, generator=generator), in_place
        apart = adam_step(apart, sum_D, 4.0, settings, 9, noise_variance=0.1)
        in_place = adam_step(in_place, sum_D, 4.0, settings, 9, noise_variance=0.1, in_place=True)
        assert in_place.to_bytes() == apart.to_bytes()
        assert in_place.vector_D is places.vector_D
        assert in_place.second_D is places.second_D


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
    for name in ("vector_D", "first_D", "second_D", "average_D"):
        assert torch.equal(getattr(again, name), getattr(state, name))


NOISY = OptimiserSettings(
    learning_rate=0.1, beta1=0.0, beta2=0.999, warm_up=0.0, bias_correction=True, noise_floor=0.05
)


def after_noise(gradient: float, settings: OptimiserSettings, variance: float) -> torch.Tensor:
    """Steps of the last of 3000 rounds, whose sums are a constant plus noise of std 8."""
    generator = torch.Generator().manual_seed(2)
    state = OptimiserState.start(torch.zeros(400))
    for _ in range(3000):
        noise = 8 * torch.randn(400, generator=generator, dtype=torch.float64)
        before, sum_D = state, 16 * gradient + noise
        state = adam_step(state, sum_D, 16.0, settings, 10**9, noise_variance=variance)
    return (before.vector_D - state.vector_D) / (0.1 * (sum_D / 16))


def test_the_correction_leaves_the_gradient_in_the_second_moment() -> None:
    """1 / step size = sqrt(E g^2): 0.5 of the gradient alone, sqrt(0.5) with the noise's 0.5^2."""
    corrected = after_noise(0.5, NOISY, 64.0)
    usual = after_noise(0.5, NOISY.model_copy(update={"bias_correction": False}), 64.0)
    assert float(corrected.mean()) == pytest.approx(1 / 0.5, rel=0.03)
    assert float(usual.mean()) == pytest.approx(1 / math.sqrt(0.5), rel=0.03)
    wrong = after_noise(0.5, NOISY, 64.0 / 10)  # a tenth of the variance must show
    assert abs(float(wrong.mean()) - 2) > 0.3


def test_where_there_is_only_noise_the_floor_holds() -> None:
    steps = after_noise(0.0, NOISY, 64.0)
    floor = math.sqrt(0.05 * 64 / 16**2)
    assert float(steps.abs().max()) <= 1.001 / floor


def test_the_average_is_the_weighted_mean_of_all_steps() -> None:
    settings = OptimiserSettings(average_decay=0.8)
    generator = torch.Generator().manual_seed(3)
    state, found = OptimiserState.start(torch.zeros(5)), []
    for _ in range(6):
        state = adam_step(state, torch.randn(5, generator=generator), 4.0, settings, 6)
        state = OptimiserState.from_bytes(state.to_bytes())
        found.append(state.vector_D)
        weight = torch.tensor([0.8**age for age in range(len(found) - 1, -1, -1)])
        mean_D = (torch.stack(found) * weight[:, None]).sum(0) / weight.sum()
        torch.testing.assert_close(state.average_D, mean_D)


def test_without_an_average_the_last_parameters_are_handed_out() -> None:
    state = OptimiserState.from_bytes(OptimiserState.start(torch.zeros(2)).to_bytes())
    assert torch.equal(state.average_D, state.vector_D)
    state = adam_step(state, torch.ones(2), 1.0, OptimiserSettings(), 3)
    assert torch.equal(OptimiserState.from_bytes(state.to_bytes()).average_D, state.vector_D)


def test_every_piece_of_a_long_vector_takes_the_step() -> None:
    """A vector of several pieces, against one piece at a time."""
    generator, size = torch.Generator().manual_seed(5), 2 * optimiser._PIECE + 7
    start_D, sum_D = (torch.randn(size, generator=generator) for _ in range(2))
    settings = OptimiserSettings(average_decay=0.9)
    whole = adam_step(OptimiserState.start(start_D), sum_D, 4.0, settings, 9)
    for begin in range(0, size, optimiser._PIECE):
        piece = slice(begin, begin + optimiser._PIECE)
        part = adam_step(OptimiserState.start(start_D[piece]), sum_D[piece], 4.0, settings, 9)
        for name in ("vector_D", "first_D", "second_D", "average_D"):
            found, expected = getattr(whole, name)[piece], getattr(part, name)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
