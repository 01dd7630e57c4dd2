"""What people read of a bound is never below it, and of a rest never above it."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from arion.cli import app
from privacy.figures import at_least, at_most


@given(st.floats(0, 1e9), st.integers(0, 6))
def test_the_figure_is_on_the_safe_side_and_near(value: float, places: int) -> None:
    shortest, step = Fraction(repr(value)), Fraction(1, 10**places)
    assert shortest <= Fraction(at_most(value, places)) < shortest + step
    assert shortest - step < Fraction(at_least(value, places)) <= shortest


@pytest.mark.parametrize(
    ("value", "up", "down"),
    [
        (8.0, "8.0000", "8.0000"),
        (0.1, "0.1000", "0.1000"),
        (3.14150000001, "3.1416", "3.1415"),
        (1e-9, "0.0001", "0.0000"),
        (float("inf"), "inf", "inf"),
    ],
)
def test_figures_at_the_edges(value: float, up: str, down: str) -> None:
    assert (at_most(value), at_least(value)) == (up, down)


def told(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["privacy", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("noise", ["0.8", "1.1", "2.3"])
def test_the_epsilon_command_prints_no_less_than_it_computed(noise: str) -> None:
    schedule = ("--delta", "1e-5", "--rounds", "100", "--sampling", "0.01")
    arguments = ("epsilon", "--noise-multiplier", noise, *schedule)
    exact = json.loads(told(*arguments, "--json"))["epsilon"]
    printed = float(told(*arguments).split()[2])
    assert exact <= printed < exact + 1e-4


def test_the_noise_that_calibrate_prints_is_enough() -> None:
    schedule = ("--delta", "1e-5", "--rounds", "100", "--sampling", "0.01")
    noise = told("calibrate", "--epsilon", "1", *schedule).split()[-1]
    arguments = ("epsilon", "--noise-multiplier", noise, *schedule, "--json")
    assert json.loads(told(*arguments))["epsilon"] <= 1
