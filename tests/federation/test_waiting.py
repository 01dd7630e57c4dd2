"""How long a round waits for members that go or hang: by a clock that moves as the test says."""

from collections.abc import Callable, Iterable
from types import SimpleNamespace

import pytest
from flwr.app import Message

from coordinator.app import GridChannel
from coordinator.patience import Wait
from coordinator.store import RunStore
from tests.away import OTHERS, Reach, drive, survivors
from tests.dying import dying
from tests.small_federation import NAMES, Make, SmallFederation

DEADLINE_S = 120.0
IN_ROUNDS = ("train.upload", "query.survivors", "query.unmask")


class Slow(Reach):
    """A grid on which answers may take long, or never come.

    Each answer takes a second, and so does each look for one.

    Attributes:
        now: seconds on the clock.
        late: when the answer of a member to a type of message comes, on the clock.
        back: when members are there again, on the clock.

    """

    def __init__(self, federation: SmallFederation, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(federation)
        self.now = 0.0
        self.late: dict[tuple[str, str], float] = {}
        self.back: dict[str, float] = {}
        self.asked: Callable[[str, str], object] = lambda name, what: None
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.wait)
        for place in ("app", "attempt", "patience"):
            monkeypatch.setattr(f"coordinator.{place}.time", clock)
        self._drops = lambda name, message: False

    def get_node_ids(self) -> Iterable[int]:
        self.away = {name for name, when in self.back.items() if self.now < when}
        return super().get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = list(messages)
        for message in pushed:
            self.asked(*self._what(message))
        return super().push_messages(pushed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        due = [key for key in message_ids if self.now >= self.late.get(self._asks(key), 0.0)]
        pulled = super().pull_messages(due)
        self.now += len(list(pulled))
        return pulled

    def wait(self, seconds: float) -> None:
        self.now += 1.0

    def _asks(self, key: str) -> tuple[str, str]:
        return self._what(self._pending[key])

    def _what(self, message: Message) -> tuple[str, str]:
        return self._names[message.metadata.dst_node_id], message.metadata.message_type


@pytest.fixture
def grid(federation: SmallFederation, monkeypatch: pytest.MonkeyPatch) -> Slow:
    return Slow(federation, monkeypatch)


@pytest.mark.parametrize("action", IN_ROUNDS)
def test_who_hangs_costs_fewer_and_fewer_deadlines(
    make_federation: Make, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """In eight rounds three: those of rounds 1, 3 and 7."""
    federation = make_federation(rounds=8, step={"releases": 24})
    grid = Slow(federation, monkeypatch)
    grid.late["west", action] = float("inf")
    assert drive(federation, grid).step == 8
    assert survivors(federation) == [OTHERS if action == "train.upload" else NAMES] * 8
    assert 3 * DEADLINE_S <= grid.now < 4.5 * DEADLINE_S
    federation.verified()


@pytest.mark.parametrize("action", IN_ROUNDS)
def test_who_goes_is_not_waited_for_where_the_others_are_enough(
    federation: SmallFederation, grid: Slow, action: str
) -> None:
    def asked(name: str, what: str) -> None:
        if (name, what) == ("west", action):
            grid.back["west"] = grid.late[name, what] = float("inf")

    grid.asked = asked
    assert drive(federation, grid).step == 3
    assert survivors(federation)[1:] == [OTHERS, OTHERS]
    assert grid.now < DEADLINE_S
    federation.verified()


def let_two_go(grid: Slow, action: str) -> None:
    """South and west go as they are asked; west is back at 100 seconds, south is not."""
    gone = {"south": float("inf"), "west": 100.0}

    def asked(name: str, what: str) -> None:
        if what == action and name in gone:
            grid.back[name] = grid.late[name, what] = gone.pop(name)

    grid.asked = asked


@pytest.mark.parametrize("action", IN_ROUNDS)
def test_who_goes_is_waited_for_where_it_is_needed(
    federation: SmallFederation, grid: Slow, action: str
) -> None:
    let_two_go(grid, action)
    assert drive(federation, grid).step == 3
    first = survivors(federation)[0]
    assert first == (("east", "north", "west") if action == "train.upload" else NAMES)
    assert federation.bodies("coordinator", "round-aborted") == []
    federation.verified()


@pytest.mark.parametrize(
    ("others", "n_min"),
    [pytest.param(["mole"], 3, id="the quorum"), pytest.param(["mole", "vole"], 5, id="n_min")],
)
def test_both_limits_are_waited_for(
    federation_of: Make, monkeypatch: pytest.MonkeyPatch, others: list[str], n_min: int
) -> None:
    """With c = 1 the quorum of five is 4, above n_min = 3; that of six is 4, below n_min = 5."""
    step = {"honest_survivors": n_min - 1}
    federation = federation_of(*NAMES, *others, n_min=n_min, step=step)
    grid = Slow(federation, monkeypatch)
    let_two_go(grid, "train.upload")
    assert drive(federation, grid).step == 3
    assert survivors(federation)[0] == tuple(sorted({*NAMES, *others} - {"south"}))


def test_a_set_that_is_fixed_is_waited_for(federation: SmallFederation, grid: Slow) -> None:
    """The coordinator starts again, and west comes late; it is in the set that was signed."""
    with dying(RunStore, "save", 2, "after"):
        drive(federation, grid)
    started = grid.now

    def asked(name: str, what: str) -> None:
        if (name, what) == ("west", "train.upload") and grid.now < started + 50:
            grid.back[name] = grid.late[name, what] = started + 50

    grid.asked = asked
    assert drive(federation, grid).step == 3
    assert survivors(federation)[0] == NAMES
    assert federation.bodies("coordinator", "round-aborted") == []


def test_where_nobody_is_there_it_is_the_service_that_was_away(
    federation: SmallFederation, grid: Slow
) -> None:
    """Three have answered when the service starts again; west trains on, and has its time."""

    def asked(name: str, what: str) -> None:
        if (name, what) == ("west", "train.upload") and grid.now < 50:
            grid.late[name, what] = 50.0
            grid.back.update(dict.fromkeys(NAMES, 50.0))

    grid.asked = asked
    assert drive(federation, grid).step == 3
    assert survivors(federation)[0] == NAMES


@pytest.mark.parametrize(("needs", "is_in"), [(5.0, True), (9.0, False)])
def test_who_hung_has_twice_the_time_of_the_others(
    federation: SmallFederation, grid: Slow, needs: float, is_in: bool
) -> None:
    """Three answers take three seconds; west had let a deadline pass before."""
    grid.late["west", "train.upload"] = float("inf")

    def asked(name: str, what: str) -> None:
        if (name, what) == ("west", "train.upload") and grid.now > DEADLINE_S:
            grid.late[name, what] = grid.now + needs

    grid.asked = asked
    assert drive(federation, grid).step == 3
    cohorts = survivors(federation)
    assert cohorts[:2] == [OTHERS, NAMES if is_in else OTHERS]
    assert cohorts[2] == NAMES  # it is due, or was in time
    assert grid.now < 2 * DEADLINE_S


def test_who_was_in_time_again_is_waited_for_again(
    make_federation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hung in round 1, in time in round 2, hung in round 3: due in round 5, not only in round 7."""
    federation = make_federation(rounds=5, step={"releases": 24})
    grid = Slow(federation, monkeypatch)
    needs = iter([float("inf"), 0.0, float("inf"), float("inf"), 50.0])

    def asked(name: str, what: str) -> None:
        if (name, what) == ("west", "train.upload"):
            grid.late[name, what] = grid.now + next(needs)

    grid.asked = asked
    assert drive(federation, grid).step == 5
    assert survivors(federation) == [OTHERS, NAMES, OTHERS, OTHERS, NAMES]


def test_who_failed_at_once_did_not_hang(federation: SmallFederation, grid: Slow) -> None:
    """As who drops out of a simulation: what it does next is as before."""
    failing = iter([True])
    grid._drops = lambda name, message: (
        (name, message.metadata.message_type) == ("west", "train.upload") and next(failing, False)
    )
    needs = iter([0.0, 50.0, 50.0])

    def asked(name: str, what: str) -> None:
        if (name, what) == ("west", "train.upload"):
            grid.late[name, what] = grid.now + next(needs)

    grid.asked = asked
    assert drive(federation, grid).step == 3
    assert survivors(federation) == [OTHERS, NAMES, NAMES]


def test_who_has_no_time_does_not_hang_anew(federation: SmallFederation, grid: Slow) -> None:
    """A deadline that passed because of others is not counted against it."""
    wait = Wait([1, 2, 3], {3}, GridChannel(grid), lambda: False)
    wait.note(1)
    assert wait.silent(DEADLINE_S) == set()
    grid.now = DEADLINE_S
    assert wait.silent(DEADLINE_S) == {2}
