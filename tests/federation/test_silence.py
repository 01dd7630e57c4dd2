"""Members that are there and never answer while an epoch is opened: asked less and less."""

import itertools
from collections.abc import Sequence

import pytest

from coordinator.app import GridChannel
from coordinator.patience import Patience
from tests.away import OPENING, OTHERS, Impatient, Reach, after_round, drive, epochs, survivors
from tests.small_federation import NAMES, Make, SmallFederation


@pytest.mark.parametrize("action", OPENING)
def test_who_never_answers_is_asked_less_and_less(
    make_federation: Make, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Each time costs a deadline: in five rounds that is at the start, and before round 3."""
    federation = make_federation(rounds=5)
    asked = itertools.count()

    def drops(name: str, what: str) -> bool:
        return (name, what) == ("west", f"query.{action}") and next(asked) >= 0

    assert federation.run(drops).step == 5
    assert survivors(federation) == [OTHERS] * 5
    assert next(asked) <= 3
    assert epochs(federation) <= 4


@pytest.mark.parametrize("action", ["roster", "reveals", "recall", "countersign"])
@pytest.mark.parametrize("names", [NAMES, ("south", "west")])
def test_a_silence_of_many_while_an_epoch_is_opened(
    federation: SmallFederation, action: str, names: tuple[str, ...]
) -> None:
    """As when the service starts again, or the nodes train for another run meanwhile."""
    silent = set(names)

    def drops(name: str, asked: str) -> bool:
        if asked == f"query.{action}" and name in silent:
            silent.remove(name)
            return True
        return False

    assert federation.run(drops).step == 3
    federation.verified()


def test_how_often_a_silent_member_is_asked() -> None:
    """After 2 plans, 4, and then each 8; afresh once it answered, or was away."""
    patience = Patience()

    def waits() -> int:
        patience.note((), [1])
        plans = 0
        while patience.due([1, 2]) != [1, 2]:
            patience.count([1, 2])
            plans += 1
        return plans

    assert [waits() for _ in range(4)] == [2, 4, 8, 8]
    patience.note([1], ())
    assert [waits() for _ in range(2)] == [2, 4]
    patience.count([2])
    assert patience.due([1]) == [1]
    assert waits() == 2


def test_who_is_needed_is_waited_for_though_another_hangs(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = Reach(federation)
    drops = grid._drops
    grid._drops = lambda name, m: (
        (name, m.metadata.message_type) == ("west", "query.keys") or drops(name, m)
    )

    def addresses(self: GridChannel, count: int, deadline_s: float) -> Sequence[int]:
        found = GridChannel.addresses(self, count, 0.0)
        if deadline_s and len(found) < count:
            grid.away.clear()  # it comes within the deadline
            found = GridChannel.addresses(self, count, 0.0)
        return found

    monkeypatch.setattr(Impatient, "addresses", addresses)
    after_round(monkeypatch, 1, lambda: grid.away.add("south"))
    assert drive(federation, grid).step == 3


def test_silence_at_different_steps(federation_of: Make) -> None:
    names = tuple(f"m{place}" for place in range(10))
    federation = federation_of(*names)
    quiet = {("m0", "query.roster"), ("m1", "query.reveals"), ("m2", "query.recall")}
    assert federation.run(lambda name, asked: (name, asked) in quiet).step == 3


def test_who_hung_and_started_again_is_in_the_next_round(
    make_federation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation(rounds=8, step={"releases": 24})
    grid = Reach(federation)
    drops, hung = grid._drops, {"west"}
    grid._drops = lambda name, m: (
        (name in hung and m.metadata.message_type == "query.keys") or drops(name, m)
    )
    after_round(monkeypatch, 3, lambda: grid.away.add("west"))  # stopped
    after_round(monkeypatch, 4, lambda: (hung.clear(), grid.away.clear()))  # started
    assert drive(federation, grid).step == 8
    assert "west" in survivors(federation)[5]
