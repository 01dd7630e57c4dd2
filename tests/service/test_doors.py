"""Knocks between the coordinator's processes: they shorten a wait, and nothing depends on them."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.service.doors import SERVICE, Door, Doors, run_door
from coordinator.service.home import ServiceHome
from tests.service.institutions import EXACT, Make
from tests.service.test_mailbox import answer_to
from tests.small_federation import NAMES, SmallFederation, digest_of

LONG_S = 60.0
OFTEN = 200  # more than a socket's queue holds


def heard(door: Door, within_s: float = 0.0) -> bool:
    """Whether someone knocked since the door was opened, or asked about the last time."""
    door.was_heard = False
    door.wait(within_s)
    return door.was_heard


def test_a_knock_ends_a_wait(tmp_path: Path) -> None:
    door = Doors(tmp_path).open(SERVICE)
    knocking = threading.Timer(0.05, Doors(tmp_path).knock, (SERVICE,))
    knocking.start()
    assert heard(door, LONG_S)
    knocking.join()
    door.close()


def test_only_the_door_that_is_meant_is_knocked_at(tmp_path: Path) -> None:
    doors = Doors(tmp_path)
    opened = [doors.open(SERVICE), doors.open(run_door("one")), Doors(tmp_path / "b").open(SERVICE)]
    doors.knock(run_door("one"))
    assert [heard(door) for door in opened] == [False, True, False]
    for door in opened:
        door.close()
    doors.knock(run_door("one"))  # nobody is there


def test_any_number_of_knocks_is_one_and_never_waited_for(tmp_path: Path) -> None:
    doors = Doors(tmp_path)
    door = doors.open(SERVICE)
    for _ in range(OFTEN):
        doors.knock(SERVICE)
    assert heard(door)
    assert not heard(door)
    door.close()


def test_a_door_that_is_taken_is_never_knocked_at_and_free_once_closed(tmp_path: Path) -> None:
    doors = Doors(tmp_path)
    first, second = doors.open(SERVICE), doors.open(SERVICE)
    doors.knock(SERVICE)
    assert (heard(first), heard(second)) == (True, False)
    first.close()
    third = doors.open(SERVICE)
    doors.knock(SERVICE)
    assert heard(third)
    third.close()


def test_a_mailbox_knocks_at_whoever_waits(service_home: ServiceHome) -> None:
    mailbox = service_home.mailbox
    service, run = (mailbox.doors.open(name) for name in (SERVICE, run_door("r")))
    message = mailbox.post("r", 1, "query.keys", ("EpochRequest", b"", b""))
    assert (heard(service), heard(run)) == (True, False)
    assert mailbox.answer(answer_to(message))
    assert (heard(service), heard(run)) == (False, True)
    assert not mailbox.answer(answer_to(message))  # it has one
    assert not heard(run)
    service.close()
    run.close()


def test_where_there_are_no_doors_a_run_goes_on(
    institutions: Make,
    make_federation: Callable[..., SmallFederation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a system without such sockets, and where service and driver are far apart."""
    monkeypatch.delattr(socket, "AF_UNIX")
    simulated = make_federation(EXACT, rounds=1).run()
    there = institutions(EXACT, rounds=1)
    assert there.service.home.mailbox.doors.open("any").socket is None
    there.start(*NAMES)
    assert digest_of(there.run()) == digest_of(simulated)
