"""Members that are away while an epoch is opened: rounds go on without them, then with them."""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

import client.app
from arion.local_grid import LocalGrid
from client.node import Node
from coordinator.app import GridChannel
from coordinator.driver import RunDriver
from coordinator.epoch_record import EpochRecord
from coordinator.errors import MissingMembersError, RunError
from coordinator.planning import is_enough, least_members
from coordinator.store import RunStore
from models.optimiser import OptimiserState
from privacy.ledger.entries import RestoredError
from privacy.rounds import RoundPlan
from privacy.secagg.parameters import smallest_roster
from tests.dying import dying
from tests.small_federation import NAMES, SmallFederation

OPENING = ("keys", "roster", "reveals", "recall", "countersign")
OTHERS = ("east", "north", "south")


class Reach(LocalGrid):
    """A grid that knows who can be reached: whoever is not in `away`."""

    def __init__(self, federation: SmallFederation, *away: str) -> None:
        super().__init__(client.app.app, federation.homes.nodes, lambda name, _: name in self.away)
        self.away = set(away)

    def get_node_ids(self) -> Iterable[int]:
        return [place for place, name in self._names.items() if name not in self.away]


class Impatient(GridChannel):
    """Does not wait for nodes; the deadline is for answers."""

    def addresses(self, count: int, deadline_s: float) -> Sequence[int]:
        return super().addresses(count, min(deadline_s, 0.0))


def drive(federation: SmallFederation, grid: LocalGrid) -> OptimiserState:
    client.app.close_nodes()
    driver = RunDriver(federation.homes.coordinator, Impatient(grid))
    try:
        return driver.run()
    finally:
        driver.close()
        client.app.close_nodes()


def plans(federation: SmallFederation) -> list[RoundPlan]:
    store = RunStore(federation.homes.coordinator)
    attempts = store.attempts()
    store.close()
    return [RoundPlan.from_payload(attempt.plan.payload) for attempt in attempts]


def survivors(federation: SmallFederation) -> list[tuple[str, ...]]:
    rounds = federation.bodies("coordinator", "round-recorded")
    return [tuple(body["survivors"]) for body in rounds]


def debits(federation: SmallFederation) -> list[int]:
    """How often each node paid; one that was never asked anything has no ledger yet."""
    asked = [name for name in NAMES if (federation.homes.nodes[name] / "ledger").exists()]
    return [
        len(federation.bodies(name, "release-debited")) if name in asked else 0 for name in NAMES
    ]


def after_round(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Have something happen once a round is recorded."""
    original = RunDriver._record

    def record(self: RunDriver, attempt: Any) -> None:
        original(self, attempt)
        if attempt.round == number:
            act()

    monkeypatch.setattr(RunDriver, "_record", record)


@pytest.mark.parametrize("action", OPENING)
def test_who_is_away_is_in_no_epoch(federation: SmallFederation, action: str) -> None:
    state = federation.run(lambda name, asked: (name, asked) == ("west", f"query.{action}"))
    assert state.step == 3
    assert {plan.cohort for plan in plans(federation)} == {OTHERS}
    assert debits(federation) == [3, 3, 3, 0]
    federation.verified()


def test_two_away_are_too_many_and_cost_nothing(federation: SmallFederation) -> None:
    with pytest.raises(MissingMembersError, match=r"at least 3 of the 4 .* from south, west"):
        drive(federation, Reach(federation, "south", "west"))
    assert debits(federation) == [0] * 4
    assert plans(federation) == []
    assert federation.run().step == 3
    federation.verified()


def test_who_comes_back_is_in_the_next_round(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = Reach(federation, "west")
    after_round(monkeypatch, 1, grid.away.clear)
    assert drive(federation, grid).step == 3
    assert survivors(federation) == [OTHERS, NAMES, NAMES]
    federation.verified()


def test_who_goes_is_waited_for_once(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """West is in round 2's cohort and does not answer; round 3 is planned without it."""
    grid = Reach(federation)
    after_round(monkeypatch, 1, lambda: grid.away.add("west"))
    assert drive(federation, grid).step == 3
    assert [plan.cohort for plan in plans(federation)] == [NAMES, NAMES, OTHERS]
    assert survivors(federation) == [NAMES, OTHERS, OTHERS]
    federation.verified()


def test_no_attempt_is_made_that_cannot_succeed(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploads of two would be charged for nothing."""
    grid = Reach(federation)
    after_round(monkeypatch, 1, lambda: grid.away.update({"south", "west"}))
    with pytest.raises(MissingMembersError, match="from south, west"):
        drive(federation, grid)
    assert debits(federation) == [1] * 4
    assert len(plans(federation)) == 1
    grid.away.clear()
    assert drive(federation, grid).step == 3
    federation.verified()


@pytest.mark.parametrize(("call", "when"), [(1, "after"), (4, "after"), (4, "before")])
def test_a_coordinator_that_starts_again_goes_on_without_who_is_away(
    federation: SmallFederation, call: int, when: str
) -> None:
    """The attempt under way is taken up with what the members signed when they were there."""
    with dying(RunStore, "save", call, when):
        federation.run()
    assert drive(federation, Reach(federation, "west")).step == 3
    assert federation.bodies("coordinator", "round-aborted") == []
    assert "west" in plans(federation)[0].cohort
    federation.verified()


def test_who_was_away_when_an_attempt_began_does_not_disturb_it(
    federation: SmallFederation,
) -> None:
    """It has keys of its own in that epoch by then, and is in the next round."""
    grid = Reach(federation, "west")
    with dying(RunStore, "save", 1, "after"):
        drive(federation, grid)
    grid.away.clear()
    assert drive(federation, grid).step == 3
    assert federation.bodies("coordinator", "round-aborted") == []
    assert survivors(federation) == [OTHERS, NAMES, NAMES]
    assert debits(federation) == [3, 3, 3, 2]
    federation.verified()


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"number": 1, "digest": 2, "bundles": []}', None])
def test_without_the_record_an_attempt_is_lost_and_no_more(
    federation: SmallFederation, damage: bytes | None
) -> None:
    with dying(RunStore, "save", 1, "after"):
        federation.run()
    record = federation.homes.coordinator / "epoch.json"
    if damage is None:
        record.unlink()
    else:
        record.write_bytes(damage)
    assert drive(federation, Reach(federation, "west")).step == 3
    (aborted,) = federation.bodies("coordinator", "round-aborted")
    assert (aborted["round"], aborted["code"]) == (1, "epoch-lost")
    assert debits(federation) == [3, 3, 3, 0]
    federation.verified()


def test_a_record_of_other_statements_is_not_believed(federation: SmallFederation) -> None:
    """One member's statement under another's name: the roster's check refuses it."""
    with dying(RunStore, "save", 1, "after"):
        federation.run()
    record = federation.homes.coordinator / "epoch.json"
    read = json.loads(record.read_bytes())
    read["bundles"]["west"] = read["bundles"]["south"]
    record.write_text(json.dumps(read))
    with pytest.raises(RunError, match="cannot be opened"):
        drive(federation, Reach(federation, "west"))
    assert debits(federation) == [0] * 4


def test_what_is_written_of_an_epoch_is_read_again(federation: SmallFederation) -> None:
    federation.run()
    data = (federation.homes.coordinator / "epoch.json").read_bytes()
    record = EpochRecord.from_bytes(data)
    assert set(record.bundles) == set(record.reveals) == set(NAMES)
    assert record.digest == plans(federation)[-1].roster_digest
    assert record.to_bytes() == data


def test_who_comes_back_and_refuses_does_not_stop_the_others(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = Reach(federation, "west")
    original = Node.recall

    def recall(self: Node, shown: Any) -> Any:
        if self.name == "west":
            raise RestoredError("Expected the newest head, got an older copy.")
        return original(self, shown)

    monkeypatch.setattr(Node, "recall", recall)
    after_round(monkeypatch, 1, grid.away.clear)
    assert drive(federation, grid).step == 3
    assert survivors(federation) == [OTHERS] * 3
    assert debits(federation) == [3, 3, 3, 0]


def test_who_refuses_from_the_start_is_named(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Node, shown: Any) -> Any:
        raise RestoredError("Expected the newest head, got an older copy.")

    monkeypatch.setattr(Node, "recall", refuse)
    with pytest.raises(RunError, match="refuses to go on with its ledger: Expected the newest"):
        federation.run()


@pytest.mark.parametrize("colluders", [1, 2, 5, 20])
def test_any_two_rosters_share_an_honest_member(colluders: int) -> None:
    for members in range(3, 61):
        least = smallest_roster(members, colluders)
        assert 2 * least - members > colluders or least == 3 >= members
        assert least == 3 or 2 * (least - 1) - members <= colluders


@pytest.mark.parametrize(
    ("members", "changes", "enough"),
    [
        (4, {}, [3, 4]),
        (5, {"n_min": 4}, [4, 5]),
        (5, {"n_min": 3}, [4, 5]),  # two rosters of 3 could share a colluder alone
        (9, {"n_min": 4, "colluders": 3}, [7, 8, 9]),
        (12, {"n_min": 4, "groups": 2}, [8, 10, 12]),  # they divide
        (60, {"n_min": 45, "colluders": 3}, range(51, 61)),  # a sparse graph stays one
    ],
)
def test_which_numbers_are_enough(
    federation: SmallFederation, members: int, changes: dict[str, int], enough: Iterable[int]
) -> None:
    pins = {f"node-{number}": "0" * 64 for number in range(members)}
    settings = federation.settings.model_copy(update={"members": pins, **changes})
    found = [count for count in range(members + 1) if is_enough(settings, count)]
    assert found == list(enough)
    assert least_members(settings) == found[0]
