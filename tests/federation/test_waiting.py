"""How long a round waits for members that go away, by a clock that moves as the test says."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import Message

from coordinator.attempt import AttemptRunner
from coordinator.attempts import Attempt
from coordinator.store import RunStore
from protos.flower import parcel_of, reply_from, to_records
from protos.messages import SurvivorSignature, UnmaskReply
from protos.wire import Parcel, WireMessage
from tests.away import OTHERS, debits, drive, survivors
from tests.dying import dying
from tests.slow_grid import DEADLINE_S, IN_ROUNDS, Slow
from tests.small_federation import NAMES, Make, SmallFederation


@pytest.fixture
def federation(make_federation: Make) -> SmallFederation:
    return make_federation(deadline_s=DEADLINE_S)


@pytest.fixture
def grid(federation: SmallFederation, monkeypatch: pytest.MonkeyPatch) -> Slow:
    return Slow(federation, monkeypatch)


def aborted(federation: SmallFederation) -> list[str]:
    return [str(body["code"]) for body in federation.bodies("coordinator", "round-aborted")]


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
    """South and west go as they are asked; west is back at 200 seconds, south is not."""
    gone = {"south": float("inf"), "west": 200.0}

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
    assert aborted(federation) == []
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
    federation = federation_of(*NAMES, *others, n_min=n_min, step=step, deadline_s=DEADLINE_S)
    grid = Slow(federation, monkeypatch)
    let_two_go(grid, "train.upload")
    assert drive(federation, grid).step == 3
    assert survivors(federation)[0] == tuple(sorted({*NAMES, *others} - {"south"}))


def spoil_a_signature(parcel: Parcel) -> Parcel:
    assert isinstance(parcel.message, SurvivorSignature)
    return Parcel(replace(parcel.message, signature=bytes(64)))


def keep_the_shares(parcel: Parcel) -> Parcel:
    assert isinstance(parcel.message, UnmaskReply)
    return Parcel(replace(parcel.message, shares=()))


def change_the_shares(parcel: Parcel) -> Parcel:
    """Well formed, and of no polynomial: only who combines them sees that."""
    assert isinstance(parcel.message, UnmaskReply)
    wrong = tuple(replace(each, own_share=bytes(32)) for each in parcel.message.shares)
    return Parcel(replace(parcel.message, shares=wrong))


@pytest.mark.parametrize(
    ("action", "kind", "spoil"),
    [
        ("query.survivors", SurvivorSignature, spoil_a_signature),
        ("query.unmask", UnmaskReply, keep_the_shares),
        ("query.unmask", UnmaskReply, change_the_shares),
    ],
)
def test_answers_that_are_worth_nothing_are_not_counted(
    federation: SmallFederation,
    grid: Slow,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    kind: type[WireMessage],
    spoil: Callable[[Parcel], Parcel],
) -> None:
    """East plays foul while west is away: of three answers two are good, west's is the third."""
    original = grid._answer

    def answer(message: Message) -> Message:
        reply = original(message)
        if grid.what(message) != ("east", action):
            return reply
        return Message(to_records(spoil(reply_from(reply.content, kind))), reply_to=message)

    def asked(name: str, what: str) -> None:
        if (name, what) == ("west", action) and name not in grid.back:
            grid.back[name] = grid.late[name, what] = grid.now + 100

    monkeypatch.setattr(grid, "_answer", answer)
    grid.asked = asked
    assert drive(federation, grid).step == 3
    assert aborted(federation) == []
    assert debits(federation) == [3] * 4


def test_a_set_that_is_fixed_is_waited_for(federation: SmallFederation, grid: Slow) -> None:
    """The coordinator starts again, and west comes late; it is in the set that was signed."""
    with dying(RunStore, "save", 2, "after"):
        drive(federation, grid)
    started = grid.now

    def asked(name: str, what: str) -> None:
        if (name, what) == ("west", "train.upload") and grid.now < started + 50:
            grid.back[name] = grid.late[name, what] = started + 200

    grid.asked = asked
    assert drive(federation, grid).step == 3
    assert survivors(federation)[0] == NAMES
    assert aborted(federation) == []


def test_who_trains_comes_back_last_after_a_fault_of_the_service(
    federation: SmallFederation, grid: Slow
) -> None:
    """All have answered but west, which trains on: it is seen again fifty seconds after them."""

    def asked(name: str, what: str) -> None:
        if (name, what) == ("west", "train.upload") and grid.now < 50:
            grid.late[name, what] = 190.0
            grid.back.update(dict.fromkeys(OTHERS, 100.0), west=150.0)

    grid.asked = asked
    assert drive(federation, grid).step == 3
    assert survivors(federation)[0] == NAMES


def test_what_has_come_counts_though_its_sender_has_gone(
    federation: SmallFederation, grid: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """West uploads and goes, and the deadline passes, while the others' vectors are added."""
    add = AttemptRunner._add

    def slowly(self: AttemptRunner, name: str, *upload: Any) -> None:
        add(self, name, *upload)
        grid.back.setdefault("west", 1000.0)
        grid.now += DEADLINE_S / 2

    monkeypatch.setattr(AttemptRunner, "_add", slowly)
    assert drive(federation, grid).step == 3
    assert survivors(federation)[0] == NAMES


@pytest.mark.parametrize("action", IN_ROUNDS)
def test_each_group_is_waited_for(
    federation_of: Make, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Groups of four that need three; three go for a while, so that one group lacks two or more."""
    names = [f"{side}{place}" for side in "ab" for place in range(4)]
    federation = federation_of(*names, groups=2, n_min=3, deadline_s=DEADLINE_S)
    grid = Slow(federation, monkeypatch)

    def asked(name: str, what: str) -> None:
        if what == action and name in names[:3]:
            grid.back[name] = grid.late[name, what] = 300.0

    grid.asked = asked
    assert drive(federation, grid).step == 3
    assert survivors(federation)[0] == tuple(names)


def test_what_could_wait_is_done_while_nodes_are_busy(
    federation: SmallFederation, grid: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not while they wait for the next round: a disk may be long about deleting states."""
    during, tidied = list[tuple[int, str]](), list[str]()
    drop, last = RunStore.drop_states, [""]

    def asked(name: str, what: str) -> None:
        last[0] = what
        if what == "train.upload":
            grid.late[name, what] = grid.now + 5.0

    def dropped(store: RunStore, step: int) -> None:
        before = len(list(store._states.iterdir()))
        drop(store, step)
        if len(list(store._states.iterdir())) < before:
            during.append((step, last[0]))

    grid.asked = asked
    monkeypatch.setattr(RunStore, "drop_states", dropped)
    monkeypatch.setattr(grid, "tidy", lambda: tidied.append(last[0]))
    assert drive(federation, grid).step == 3
    assert during == [(2, "train.upload"), (3, "query.countersign")]
    assert "train.upload" in tidied


def test_rounds_that_never_wait_leave_no_more_than_three_states(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, save = list[int](), RunStore.save

    def saved(store: RunStore, attempt: Attempt) -> None:
        save(store, attempt)
        counts.append(len(list(store._states.glob("*.safetensors"))))

    monkeypatch.setattr(RunStore, "save", saved)
    assert federation.run().step == 3
    assert max(counts) == 3
    states = sorted((federation.homes.coordinator / "states").iterdir())
    assert [each.stem for each in states] == ["000002", "000003"]


def test_the_next_rounds_model_is_staged(
    federation: SmallFederation, grid: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged, asked, push = list[bytes](), list[bytes](), grid.push_messages

    def pushed(messages: Iterable[Message]) -> Iterable[str]:
        found = list(messages)
        if found[0].metadata.message_type == "train.upload":
            asked.append(parcel_of(found[0].content)[2])
        return push(found)

    monkeypatch.setattr(grid, "push_messages", pushed)
    monkeypatch.setattr(grid, "stage", staged.append)
    assert drive(federation, grid).step == 3
    assert len(asked) == 3
    assert [each is other for each, other in zip(staged, asked[1:], strict=True)] == [True, True]
