"""How long a node waits before it dials its coordinator again."""

import random

import pytest

from client.agent import Waits

LARGEST = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


class Whole(random.Random):
    """Draws the largest wait each time."""

    def uniform(self, a: float, b: float) -> float:
        return b


def test_waits_double_while_nobody_answers() -> None:
    waits = Waits(Whole())
    found = [waits.after(0.0) for _ in range(8)]
    assert found == LARGEST


@pytest.mark.parametrize(("lasted", "then"), [(1.9, 30.0), (2.1, 0.5)])
def test_a_connection_that_held_ends_the_growth(lasted: float, then: float) -> None:
    waits = Waits(Whole())
    assert [waits.after(0.0) for _ in range(8)][-1] == 30.0
    assert waits.after(lasted) == then


def test_a_coordinator_that_is_restarted_every_few_seconds_is_found_soon_each_time() -> None:
    """Each restart loses the stream, and dials fail before it listens again."""
    waits = Waits(Whole())
    for _ in range(10):
        assert [waits.after(lasted) for lasted in (3.0, 0.0, 0.0)] == [0.5, 1.0, 2.0]


def test_waits_are_drawn_from_the_upper_half() -> None:
    waits = Waits(random.Random(0))
    found = [waits.after(0.0) for _ in range(8)]
    assert all(low / 2 <= wait <= low for wait, low in zip(found, LARGEST, strict=True))
    assert found != LARGEST
