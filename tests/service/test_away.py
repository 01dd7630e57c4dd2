"""Who is there and who is away, as the service knows it and as its runs go on by it."""

import threading
import time
from collections.abc import Callable

import pytest

from client.agent import Agent
from coordinator.attempts import Attempt
from coordinator.service.registry import Registry
from coordinator.store import RunStore
from privacy.rounds import RoundPlan
from tests.service.institutions import EXACT, Institutions, Make
from tests.small_federation import NAMES, RUN

OTHERS = ("east", "north", "south")


def wait(until: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not until():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def present(registry: Registry) -> list[str]:
    return [member.name for member in registry.nodes_present()]


def seen(registry: Registry, name: str) -> float:
    return next(member.seen or 0.0 for member in registry.nodes() if member.name == name)


def goes_on(registry: Registry, name: str) -> bool:
    """Whether it is noted again that a node listens, until south's has been, twice."""
    before = seen(registry, name)
    for _ in range(2):
        south = seen(registry, "south")
        wait(lambda: seen(registry, "south") > south, "south listens")  # noqa: B023
    return seen(registry, name) > before


def attempts(there: Institutions) -> list[Attempt]:
    store = RunStore(there.service.home.path / "runs" / RUN)
    try:
        return store.attempts()
    finally:
        store.close()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who listens is noted all the time."""
    monkeypatch.setattr("coordinator.service.exchange.SEEN_EVERY_S", 0.02)


@pytest.mark.usefixtures("often")
def test_who_listens_is_there(institutions: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    there = institutions()
    registry = there.service.home.registry
    assert present(registry) == []
    there.start("north", "south")
    wait(lambda: present(registry) == ["north", "south"], "they listen")
    assert goes_on(registry, "north")
    there.stop("north")
    wait(lambda: not goes_on(registry, "north"), "its stream is closed")
    clock = registry._clock
    for moved in (61.0, -3600.0):  # a minute later; or a clock that was set back
        monkeypatch.setattr(registry, "_clock", lambda s=moved: clock() + s)
        assert "north" not in present(registry)


def test_who_trains_says_that_it_is_there(
    institutions: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stream may be lost meanwhile, and is opened again only after that."""
    monkeypatch.setattr("coordinator.service.exchange.SEEN_EVERY_S", 3600.0)  # no streams
    monkeypatch.setattr("client.agent._SIGN_OF_LIFE_S", 0.02)
    there = institutions()
    registry, mailbox = there.service.home.registry, there.service.home.mailbox
    asked, may_answer = threading.Event(), threading.Event()

    def answer(*question: object) -> tuple[str, bytes, bytes]:
        asked.set()
        assert may_answer.wait(60)
        return "Done", b"", b""

    agent = Agent(there.federation.homes.nodes["north"], answer)
    thread = threading.Thread(target=agent.run, daemon=True)
    thread.start()
    wait(lambda: present(registry) == ["north"], "it listens")
    address = next(m.address for m in registry.nodes() if m.name == "north")
    message = mailbox.post("r", address, "train.upload", ("Done", b"", b""))
    assert asked.wait(60)
    for _ in range(3):
        before = seen(registry, "north")
        wait(lambda: seen(registry, "north") > before, "a sign of life")  # noqa: B023
    may_answer.set()
    wait(lambda: mailbox.first_answer([message]) is not None, "the answer")
    wait(lambda: all(t.name != "signs of life" for t in threading.enumerate()), "they end")
    agent.stop()
    thread.join(20)


def test_who_trains_while_the_service_starts_again_is_in_the_sum(
    institutions: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have answered and listen again, long before west is done and does."""
    lately_s = absent_s = 3.0
    monkeypatch.setattr("client.agent._SIGN_OF_LIFE_S", 0.1)
    monkeypatch.setattr("coordinator.service.exchange.SEEN_EVERY_S", 0.2)
    monkeypatch.setattr("coordinator.service.registry.LATELY_S", lately_s)
    monkeypatch.setattr("coordinator.patience._ABSENT_S", absent_s)
    there = institutions(EXACT, rounds=1, deadline_s=60.0)
    there.start(*NAMES)
    there.held.add(("west", "train.upload"))

    def restart() -> None:
        try:
            for name in NAMES:
                there.wait_for(name, "train.upload")
            there.restart_service()
            time.sleep(lately_s + absent_s + 2)  # it would count as away by now
        finally:
            there.held.clear()

    thread = threading.Thread(target=restart, daemon=True)
    thread.start()
    assert there.run().step == 1
    thread.join(60)
    assert there.bodies("coordinator", "round-recorded")[0]["survivors"] == list(NAMES)


def test_a_run_begins_without_who_is_away_and_goes_on_with_it(
    institutions: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """West is away for the deadline, and comes while the others work on the first round."""
    caplog.set_level("INFO", "arion.coordinator")
    there = institutions(EXACT, rounds=2, deadline_s=3.0)
    there.start(*OTHERS)
    there.held.add(("north", "query.unmask"))

    def come() -> None:
        there.wait_for("north", "query.unmask")
        there.start("west")
        wait(lambda: "west" in present(there.service.home.registry), "west listens")
        there.held.clear()

    thread = threading.Thread(target=come, daemon=True)
    thread.start()
    assert there.run().step == 2
    thread.join(60)
    assert not thread.is_alive()
    cohorts = [RoundPlan.from_payload(each.plan.payload).cohort for each in attempts(there)]
    assert (cohorts[0], cohorts[-1]) == (OTHERS, NAMES)
    there.verified()
    assert any("are there: waiting for 4 up to 3 s" in told for told in caplog.messages)
    assert "rounds: 2/2  4 members in the sum" in there.command("watch", RUN).output
