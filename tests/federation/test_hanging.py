"""Members that are there and let a deadline pass: asked less often, where that is possible."""

import pytest

from tests.away import OTHERS, after_round, drive, survivors
from tests.slow_grid import DEADLINE_S, IN_ROUNDS, Slow
from tests.small_federation import NAMES, Make


@pytest.mark.parametrize("action", IN_ROUNDS)
def test_who_hangs_costs_fewer_and_fewer_deadlines(
    make_federation: Make, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """In eight rounds three, those of rounds 1, 3 and 7; in the others it is asked for nothing."""
    federation = make_federation(rounds=8, step={"releases": 24}, deadline_s=DEADLINE_S)
    grid = Slow(federation, monkeypatch)
    grid.late["west", action] = float("inf")
    assert drive(federation, grid).step == 8
    asked = [number in (1, 3, 7) for number in range(1, 9)]
    is_in = [each and action != "train.upload" for each in asked]
    assert survivors(federation) == [NAMES if each else OTHERS for each in is_in]
    assert 3 * DEADLINE_S <= grid.now < 4 * DEADLINE_S
    federation.verified()


def test_who_is_slow_is_in_again_after_it_was_late(
    make_federation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It works on one message at a time, and needs nearly all of the deadline for each."""
    federation = make_federation(rounds=6, step={"releases": 24}, deadline_s=DEADLINE_S)
    grid, free, needs = Slow(federation, monkeypatch), 0.0, iter([1.1 * DEADLINE_S])

    def asked(name: str, what: str) -> None:
        nonlocal free
        if what == "train.upload":
            grid.late[name, what] = grid.now + 300
        if (name, what) == ("west", "train.upload"):
            free = max(free, grid.now) + next(needs, 0.9 * DEADLINE_S)
            grid.late[name, what] = free

    grid.asked = asked
    assert drive(federation, grid).step == 6
    assert survivors(federation) == [OTHERS, OTHERS, *[NAMES] * 4]


def test_who_answered_again_is_asked_as_often_as_at_first(
    make_federation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hangs in round 1, not in round 3, hangs in round 4: it is due in round 6, and then 10."""
    federation = make_federation(rounds=6, step={"releases": 24}, deadline_s=DEADLINE_S)
    grid = Slow(federation, monkeypatch)
    late = iter([float("inf"), 0.0, float("inf"), 0.0])

    def asked(name: str, what: str) -> None:
        if (name, what) == ("west", "train.upload"):
            grid.late[name, what] = next(late)

    grid.asked = asked
    assert drive(federation, grid).step == 6
    assert survivors(federation) == [OTHERS, OTHERS, NAMES, OTHERS, OTHERS, NAMES]


def test_who_failed_at_once_or_was_away_did_not_hang(
    federation_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six, mole fails and west goes: nobody is waited for, and both are asked again."""
    federation = federation_of(*NAMES, "mole", "vole", deadline_s=DEADLINE_S)
    grid, failing = Slow(federation, monkeypatch), iter([True])
    grid._drops = lambda name, message: (
        grid.what(message) == ("mole", "train.upload") and next(failing, False)
    )

    def asked(name: str, what: str) -> None:
        if (name, what) == ("west", "train.upload") and name not in grid.back:
            grid.late[name, what], grid.back[name] = float("inf"), grid.now + 70
        elif name == "west":
            grid.late[name, what] = 0.0

    grid.asked = asked
    assert drive(federation, grid).step == 3
    everyone = tuple(sorted({*NAMES, "mole", "vole"}))
    assert survivors(federation) == [("east", "north", "south", "vole"), everyone, everyone]
    assert grid.now < DEADLINE_S


@pytest.mark.parametrize(("n_min", "deadlines"), [(3, 3), (4, 8)])
def test_a_group_that_needs_who_hangs_waits_for_it(
    federation_of: Make, monkeypatch: pytest.MonkeyPatch, n_min: int, deadlines: int
) -> None:
    """Groups of four, eight rounds: with n_min = 4 no group can do without a member."""
    names = [f"{side}{place}" for side in "ab" for place in range(4)]
    step = {"releases": 24, "honest_survivors": n_min - 1}
    federation = federation_of(
        *names, groups=2, n_min=n_min, rounds=8, step=step, deadline_s=DEADLINE_S
    )
    grid = Slow(federation, monkeypatch)
    grid.late["a0", "train.upload"] = float("inf")
    assert drive(federation, grid).step == 8
    assert deadlines * DEADLINE_S <= grid.now < (deadlines + 1) * DEADLINE_S
    assert {len(names) for names in survivors(federation)} == {7 if n_min == 3 else 4}


def test_who_hung_and_started_again_is_asked_at_once(
    make_federation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hung in rounds 1 and 3, it would be due in round 7; it is away for the plan of round 4."""
    federation = make_federation(rounds=5, step={"releases": 24}, deadline_s=DEADLINE_S)
    grid = Slow(federation, monkeypatch)
    grid.late["west", "train.upload"] = float("inf")

    def start_again() -> None:
        grid.late.clear()
        grid.back.clear()

    after_round(monkeypatch, 3, lambda: grid.back.update(west=float("inf")))
    after_round(monkeypatch, 4, start_again)
    assert drive(federation, grid).step == 5
    assert survivors(federation) == [*[OTHERS] * 4, NAMES]
