"""Members that are away while an epoch is opened: rounds go on without them, then with them."""

import json
from collections.abc import Iterable

import pytest
from flwr.app import Message

import client.app
from client.epoch import HELD_EPOCHS
from client.node import Node
from coordinator.epoch_record import EpochRecord
from coordinator.errors import MissingMembersError, RunError
from coordinator.planning import is_enough, least_members
from coordinator.store import RunStore
from tests.away import OPENING, OTHERS, Reach, after_round, debits, drive, plans, survivors
from tests.dying import dying
from tests.small_federation import FEDERATION, NAMES, Make, SmallFederation


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


@pytest.mark.parametrize("asked", ["train.upload", "query.survivors", "query.unmask"])
def test_who_goes_is_waited_for_once(federation: SmallFederation, asked: str) -> None:
    """West goes when it is asked something in round 1; round 2 is planned without it."""
    grid = Reach(federation)
    drops = grid._drops

    def goes(name: str, message: Message) -> bool:
        if (name, message.metadata.message_type) == ("west", asked):
            grid.away.add("west")
        return drops(name, message)

    grid._drops = goes
    assert drive(federation, grid).step == 3
    assert [plan.cohort for plan in plans(federation)] == [NAMES, OTHERS, OTHERS]
    assert survivors(federation)[1:] == [OTHERS, OTHERS]
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


def test_no_attempt_is_made_that_cannot_reach_its_quorum(
    federation_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five with c = 1 that is 4, though n_min is 3."""
    federation = federation_of(*NAMES, "mole")
    grid = Reach(federation)
    after_round(monkeypatch, 1, lambda: grid.away.update({"south", "west"}))
    with pytest.raises(MissingMembersError, match="at least 4 of the 5"):
        drive(federation, grid)
    assert debits(federation) == [1] * 5
    grid.away.clear()
    assert drive(federation, grid).step == 3


def test_no_attempt_is_planned_that_no_group_can_finish(
    federation_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of five, c = 1: the quorum of a group is 4, n_min 3; three are there."""
    names = tuple(f"m{place}" for place in range(10))
    federation = federation_of(*names, groups=2)
    grid = Reach(federation)
    after_round(monkeypatch, 1, lambda: grid.away.update(names[3:]))
    with pytest.raises(RunError):
        drive(federation, grid)
    assert debits(federation) == [1] * 10


@pytest.mark.parametrize("is_late", [True, False])
def test_groups_leave_out_as_many_as_do_not_divide(
    federation_of: Make, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """Of eight in two groups one is away: six take part, and one waits until there is an epoch."""
    names = tuple(f"m{place}" for place in range(8))
    federation = federation_of(*names, groups=2, rounds=4)
    grid = Reach(federation, *([] if is_late else ["m7"]))
    after_round(monkeypatch, 1, lambda: grid.away.add("m7"))
    assert drive(federation, grid).step == 4
    cohorts = [plan.cohort for plan in plans(federation)]
    assert [len(cohort) for cohort in cohorts] == [8 if is_late else 6, 6, 6, 6]
    assert all("m7" not in cohort for cohort in cohorts[is_late:])
    assert (federation.homes.coordinator / "epochs").read_text() == f"{1 + is_late}\n"
    took_part = {name for cohort in cohorts for name in cohort} - grid.away
    assert all(federation.bodies(name, "run-closed") for name in took_part)  # who waits, too
    federation.verified()


def test_who_is_left_over_stands_in_for_who_goes(
    federation_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tuple(f"m{place}" for place in range(8))
    federation = federation_of(*names, groups=2)
    grid = Reach(federation, "m7")

    def go() -> None:
        (spare,) = set(names[:7]) - set(plans(federation)[0].cohort)
        grid.away.add("m0" if spare != "m0" else "m1")

    after_round(monkeypatch, 1, go)
    assert drive(federation, grid).step == 3
    assert set(plans(federation)[-1].cohort) == set(names) - grid.away
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


def test_another_three_are_enough_after_a_start(federation: SmallFederation) -> None:
    """An attempt of east, north and south; then south is away, and west is back."""
    grid = Reach(federation, "west")
    with dying(RunStore, "save", 1, "after"):
        drive(federation, grid)
    grid.away = {"south"}
    assert drive(federation, grid).step == 3
    (aborted,) = federation.bodies("coordinator", "round-aborted")
    assert aborted["code"] == "epoch-lost"
    federation.verified()


def test_an_epoch_that_a_node_has_left_is_lost_and_no_more(federation: SmallFederation) -> None:
    """It entered eight newer ones, of other runs or that came to nothing, while the run stood."""
    with dying(RunStore, "save", 1, "after"):
        federation.run()
    client.app.close_nodes()
    node = Node(federation.homes.nodes["north"], "simulate")
    for number in range(2, 2 + HELD_EPOCHS):
        node.publish_keys(FEDERATION, number)
    node.close()
    (federation.homes.coordinator / "epochs").write_text(f"{1 + HELD_EPOCHS}\n")
    state = drive(federation, Reach(federation, "west"))
    assert state.step == 3
    (aborted,) = federation.bodies("coordinator", "round-aborted")
    assert aborted["code"] == "epoch-lost"
    federation.verified()


@pytest.mark.parametrize("phase", range(1, 13))
def test_members_change_wherever_the_coordinator_dies(
    federation: SmallFederation, phase: int
) -> None:
    """West is away, then north; no more than one attempt is lost."""
    grid = Reach(federation, "west")
    with dying(RunStore, "save", phase, "after"):
        drive(federation, grid)
    grid.away = {"north"}
    assert drive(federation, grid).step == 3
    assert len(federation.bodies("coordinator", "round-aborted")) <= 1
    federation.verified()


@pytest.mark.parametrize(("call", "when"), [(1, "before"), (2, "before"), (2, "after")])
def test_the_coordinator_dies_as_it_keeps_what_members_signed(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch, call: int, when: str
) -> None:
    grid = Reach(federation, "west")
    with monkeypatch.context() as patch:
        after_round(patch, 1, grid.away.clear)
        with dying(RunStore, "save_epoch", call, when):
            drive(federation, grid)
    assert drive(federation, grid).step == 3
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


def test_a_record_that_lacks_a_nonce_costs_an_attempt_at_most(federation: SmallFederation) -> None:
    with dying(RunStore, "save", 1, "after"):
        federation.run()
    record = federation.homes.coordinator / "epoch.json"
    read = json.loads(record.read_bytes())
    del read["reveals"]["west"]
    record.write_text(json.dumps(read))
    assert drive(federation, Reach(federation, "west")).step == 3


def test_a_record_of_other_statements_is_not_believed(federation: SmallFederation) -> None:
    """One member's statement under another's name: the roster's check refuses it."""
    with dying(RunStore, "save", 1, "after"):
        federation.run()
    record = federation.homes.coordinator / "epoch.json"
    read = json.loads(record.read_bytes())
    read["bundles"]["west"] = read["bundles"]["south"]
    record.write_text(json.dumps(read))
    assert drive(federation, Reach(federation, "west")).step == 3
    (aborted,) = federation.bodies("coordinator", "round-aborted")
    assert aborted["code"] == "epoch-lost"


def test_what_is_written_of_an_epoch_is_read_again(federation: SmallFederation) -> None:
    federation.run()
    data = (federation.homes.coordinator / "epoch.json").read_bytes()
    record = EpochRecord.from_bytes(data)
    assert set(record.bundles) == set(record.reveals) == set(NAMES)
    assert record.digest == plans(federation)[-1].roster_digest
    assert record.to_bytes() == data


@pytest.mark.parametrize(
    ("members", "changes", "enough"),
    [
        (4, {}, [3, 4]),
        (5, {"n_min": 4}, [4, 5]),
        (5, {"n_min": 3}, [4, 5]),  # the quorum of five
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
