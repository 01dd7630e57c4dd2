"""Whole runs over the service: nodes in threads of their own, each behind mutual TLS."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from tests.service.institutions import EXACT, Make
from tests.small_federation import NAMES, SmallFederation, digest_of

ARION = [sys.executable, "-c", "from arion.cli import main; main()"]


def test_the_model_is_that_of_the_simulation(
    institutions: Make, make_federation: Callable[..., SmallFederation]
) -> None:
    """Without noise, and with every unit drawn, nothing is random: two runtimes, one model."""
    simulated = make_federation(EXACT, rounds=2).run()
    there = institutions(EXACT, rounds=2)
    there.start(*NAMES)
    assert digest_of(there.run()) == digest_of(simulated)


def test_a_private_run_ends_and_its_ledgers_hold(
    institutions: Make,
) -> None:
    there = institutions(rounds=2)
    there.start(*NAMES)
    assert there.run().step == 2
    reports = there.verified()
    assert {reports[name].noise for name in NAMES} == {"csprng"}
    assert there.service.home.mailbox.waiting(1) == []


def test_a_missing_node_never_hangs_a_run(institutions: Make) -> None:
    """west leaves after the first round; three of four are enough, at the deadline."""
    there = institutions(EXACT, rounds=2, deadline_s=3.0)
    there.start(*NAMES)

    def leave() -> None:
        while ("west", "query.unmask") not in there.asked:
            time.sleep(0.02)
        there.stop("west")

    thread = threading.Thread(target=leave, daemon=True)
    thread.start()
    state = there.run()
    thread.join(20)
    assert not thread.is_alive()
    assert state.step == 2
    recorded = there.bodies("coordinator", "round-recorded")
    assert "west" in recorded[0]["survivors"]
    assert "west" not in recorded[1]["survivors"]
    there.verified()
    watched = there.command("watch", "small").output
    assert "rounds: 2/2  3 of 4 members in the sum, without west" in watched


def test_a_node_killed_in_the_middle_comes_back(
    institutions: Make,
) -> None:
    """Both commands, one of them killed with -9 while it trains; nothing is charged twice."""
    there = institutions(rounds=3, deadline_s=60.0)
    others = [name for name in NAMES if name != "north"]
    there.start(*others)
    north = there.federation.homes.nodes["north"]
    there.order("small")
    entries = north / "ledger" / "entries.jsonl"
    command = [*ARION, "node", "run", str(north)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    killed = threading.Event()

    def kill() -> None:
        nonlocal process
        while not entries.exists() or b"release-debited" not in entries.read_bytes():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        killed.set()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        result = there.command("resume", "small")
        thread.join(30)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert killed.is_set()
    assert result.exit_code == 0, result.output
    assert "finished   3/3 rounds" in result.output
    reports = there.verified()
    debits = there.bodies("north", "release-debited")
    assert len({debit["plan_digest"] for debit in debits}) == len(debits)
    assert {reports[name].noise for name in NAMES} == {"csprng"}


def test_a_service_that_starts_again_is_dialled_again(
    institutions: Make,
) -> None:
    there = institutions(EXACT, rounds=1)
    there.start(*NAMES)
    there.restart_service()
    assert there.run().step == 1
