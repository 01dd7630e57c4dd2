"""Members that are there and refuse, play foul or never answer: the others go on without them."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from client.node import Node
from coordinator.app import GridChannel
from coordinator.driver import RunDriver
from coordinator.errors import MissingMembersError, RestoredLedgerError, RunError
from coordinator.store import RunStore
from coordinator.witnesses import Witnesses
from privacy.ledger.entries import RestoredError
from privacy.rounds import PlanCode, PlanRefused
from tests.away import OTHERS, Impatient, Reach, after_round, debits, drive, epochs, survivors
from tests.dying import dying
from tests.small_federation import NAMES, Make, SmallFederation

OLDER = "Expected the newest head, got an older copy."


def refuse_to_recall(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    original = Node.recall

    def recall(self: Node, shown: Any) -> Any:
        if self.name in names:
            raise RestoredError(OLDER)
        return original(self, shown)

    monkeypatch.setattr(Node, "recall", recall)


def test_who_refuses_from_the_start_is_named(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_recall(monkeypatch, *NAMES)
    with pytest.raises(RunError, match="refuses to go on with its ledger: Expected the newest"):
        federation.run()


def test_who_refuses_an_epoch_is_named(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the name that the carrier knows, for it has signed nothing yet."""
    original = Node.publish_keys

    def publish(self: Node, federation: str, epoch: int) -> Any:
        return original(self, federation if self.name != "west" else "another", epoch)

    monkeypatch.setattr(Node, "publish_keys", publish)
    with pytest.raises(RunError, match=r"^west refuses epoch 1: "):
        federation.run()


def test_who_come_back_and_refuse_do_not_stop_the_others(
    federation_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many: it takes no opening's place."""
    names = tuple(f"m{place}" for place in range(10))
    federation = federation_of(*names)
    refuse_to_recall(monkeypatch, *names[6:])
    grid = Reach(federation, *names[6:])
    after_round(monkeypatch, 1, grid.away.clear)
    assert drive(federation, grid).step == 3
    assert survivors(federation) == [names[:6]] * 3
    assert debits(federation) == [3] * 6 + [0] * 4


def foul_keys(self: Node, original: Callable[..., Any], federation: str, epoch: int) -> Any:
    return original(self, federation, epoch + 50)


def foul_head(self: Node, original: Callable[..., Any], shown: Any) -> Any:
    return self._identity.sign("plan", original(self, shown).payload)


def unlike_keys(self: Node, original: Callable[..., Any], federation: str, epoch: int) -> Any:
    self._epochs._hybrid = True  # right by themselves, and nobody else's are so
    return original(self, federation, epoch)


def foul_nonce(self: Node, original: Callable[..., Any], bundles: Any) -> Any:
    return self._identity.sign("plan", original(self, bundles).payload)


def no_countersignature(self: Node, original: Callable[..., Any], offer: Any) -> Any:
    raise RestoredError(OLDER)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("publish_keys", foul_keys),
        ("publish_keys", unlike_keys),
        ("accept_roster", foul_nonce),
        ("recall", foul_head),
        ("countersign", no_countersignature),
    ],
)
def test_who_comes_back_and_plays_foul_does_not_stop_the_others(
    federation: SmallFederation,
    monkeypatch: pytest.MonkeyPatch,
    question: str,
    answer: Callable[..., Any],
) -> None:
    original = getattr(Node, question)

    def answered(self: Node, *asked: Any) -> Any:
        return answer(self, original, *asked) if self.name == "west" else original(self, *asked)

    monkeypatch.setattr(Node, question, answered)
    grid = Reach(federation, "west")
    after_round(monkeypatch, 1, grid.away.clear)
    assert drive(federation, grid).step == 3
    assert survivors(federation) == [OTHERS] * 3


def test_foul_keys_of_two_at_once_are_left_out_one_by_one(
    federation_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tuple(f"m{place}" for place in range(6))
    federation = federation_of(*names)
    original = Node.publish_keys

    def publish(self: Node, federation: str, epoch: int) -> Any:
        return original(self, federation, epoch + 50 if self.name in names[4:] else epoch)

    monkeypatch.setattr(Node, "publish_keys", publish)
    grid = Reach(federation, *names[4:])
    after_round(monkeypatch, 1, grid.away.clear)
    assert drive(federation, grid).step == 3
    assert survivors(federation) == [names[:4]] * 3


def test_who_refused_and_went_is_not_waited_for(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """West comes back, refuses and goes; then a new epoch is needed, which nobody else can join."""
    refuse_to_recall(monkeypatch, "west")
    grid = Reach(federation, "west")
    waited: list[tuple[int, int]] = []

    def addresses(self: GridChannel, count: int, deadline_s: float) -> Sequence[int]:
        found = GridChannel.addresses(self, count, 0.0)
        waited.append((count, len(found)))
        return found

    original = RunDriver._record

    def record(self: RunDriver, attempt: Any) -> None:
        original(self, attempt)
        grid.away.clear() if attempt.round == 1 else grid.away.add("west")
        if attempt.round == 2:
            self._epochs.members = None  # as where a member lost its keys

    monkeypatch.setattr(Impatient, "addresses", addresses)
    monkeypatch.setattr(RunDriver, "_record", record)
    assert drive(federation, grid).step == 3
    first = waited.index((len(NAMES), len(OTHERS)))  # for everyone, once
    assert all(count <= found for count, found in waited[first + 1 :])


def test_a_finished_run_stops_where_the_coordinators_ledger_is_an_older_copy(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is no refusal of one member: nothing is closed over it."""
    with dying(RunStore, "save", 12, "after"):
        federation.run()

    def show_all(*ignored: object) -> None:
        raise RestoredLedgerError("Expected the newest copy of the ledger, got an older one.")

    monkeypatch.setattr(Witnesses, "show_all", show_all)
    with pytest.raises(RestoredLedgerError):
        federation.run()
    assert not (federation.homes.coordinator / "CLOSED").exists()


def test_a_run_is_closed_though_a_member_refuses(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rounds are recorded; the coordinator dies, and one that refuses stops nothing more."""
    with dying(RunStore, "save", 12, "after"):
        federation.run()
    refuse_to_recall(monkeypatch, "west")
    assert federation.run().step == 3
    assert (federation.homes.coordinator / "CLOSED").exists()


def test_a_node_that_comes_back_elsewhere_is_found(
    federation_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its carrier may number it anew when it starts again."""
    federation = federation_of(
        "east", "north", "south", n_min=2, step={"honest_survivors": 1, "noise_multiplier": 1.2}
    )
    grid = Reach(federation)

    def move() -> None:
        old = next(place for place, name in grid._names.items() if name == "south")
        grid._names[old] = ""  # nobody
        grid.away.add("")
        grid._names[old + 10], grid._contexts[old + 10] = "south", grid._contexts[old]

    after_round(monkeypatch, 1, move)
    assert drive(federation, grid).step == 3
    assert epochs(federation) == 2
    assert survivors(federation) == [("east", "north", "south")] * 3


def test_who_refuses_is_told_of_the_end(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Node.countersign
    refuses: set[str] = set()

    def countersign(self: Node, offer: Any) -> Any:
        if self.name in refuses:
            raise RestoredError(OLDER)
        return original(self, offer)

    monkeypatch.setattr(Node, "countersign", countersign)
    grid = Reach(federation)
    after_round(monkeypatch, 1, lambda: (grid.away.add("west"), refuses.add("west")))
    after_round(monkeypatch, 2, grid.away.clear)
    assert drive(federation, grid).step == 3
    assert federation.bodies("west", "run-closed") != []


def refuse_plans(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    original = Node.release

    def release(self: Node, *asked: Any) -> Any:
        if self.name in names:
            raise PlanRefused(PlanCode.WRONG_FEDERATION, "federation", "no")
        return original(self, *asked)

    monkeypatch.setattr(Node, "release", release)


def test_no_second_attempt_where_refusals_keep_it_from_its_quorum(
    federation_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = federation_of(*NAMES, "mole")
    refuse_plans(monkeypatch, "west")
    with pytest.raises(RunError, match="at least 4 members to take part, got refusals of 1 of 4"):
        drive(federation, Reach(federation, "mole"))
    assert max(debits(federation)) == 1


def test_who_refused_is_not_said_to_be_away(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_recall(monkeypatch, "west")
    grid = Reach(federation, "west")
    after_round(monkeypatch, 1, grid.away.clear)
    after_round(monkeypatch, 2, lambda: grid.away.add("south"))
    with pytest.raises(MissingMembersError, match="Some are there and refused: west refuses"):
        drive(federation, grid)
