"""A node whose processes torchrun started, in a run with three nodes of one process each."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from client.config import CONSENT_FILE, NodeError, load_node_config
from client.seats import Seats
from models.parallel import World
from privacy.consent import load_consent
from tests.parallel.conftest import free_port
from tests.service.institutions import EXACT, Institutions, Make
from tests.small_federation import NAMES, SmallFederation, federation

__all__ = ["federation"]  # a fixture

OTHERS = [name for name in NAMES if name != "north"]


def torchrun(home: Path) -> subprocess.Popen[bytes]:
    """Start the node's two processes."""
    options = ["--nproc-per-node", "2", "--master-port", str(free_port())]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "arion"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "node", "run", str(home)], stderr=subprocess.DEVNULL, env=environment
    )


@contextmanager
def serving(there: Institutions) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes of north; whatever the block leaves in the list is stopped."""
    there.start(*OTHERS)
    started = [torchrun(there.federation.homes.nodes["north"])]
    try:
        yield started
    finally:
        started[-1].send_signal(signal.SIGTERM)
        started[-1].wait(60)


def ranks(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that torchrun started, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return sorted(map(int, children.split()))


@pytest.mark.slow
def test_two_processes_of_a_node_give_the_model_that_one_gives(
    institutions: Make, make_federation: Callable[..., SmallFederation]
) -> None:
    alone = make_federation(EXACT, rounds=2).run()
    there = institutions(EXACT, rounds=2, deadline_s=120.0)
    with serving(there):
        state = there.run()
    # Sums of two processes round otherwise than one's.
    torch.testing.assert_close(state.vector_D, alone.vector_D, rtol=1e-4, atol=1e-5)
    assert not torch.equal(state.vector_D, torch.zeros_like(state.vector_D))


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_node_and_nothing_is_charged_twice(
    institutions: Make,
) -> None:
    there = institutions(rounds=3, deadline_s=120.0)
    entries = there.federation.homes.nodes["north"] / "ledger" / "entries.jsonl"
    ends: list[int] = []
    with serving(there) as started:

        def kill() -> None:
            while not entries.exists() or b"release-debited" not in entries.read_bytes():
                time.sleep(0.01)
            os.kill(ranks(started[0])[1], signal.SIGKILL)
            ends.append(started[0].wait(60))
            started.append(torchrun(there.federation.homes.nodes["north"]))

        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        assert there.run().step == 3
        thread.join(60)
    assert ends
    assert ends[0] != 0
    debits = there.bodies("north", "release-debited")
    assert len({debit["plan_digest"] for debit in debits}) == len(debits) >= 3
    there.verified()


@pytest.mark.parametrize("change", [{"two_passes": True}, {"precision": "bf16", "pad_draws": True}])
def test_what_was_not_tried_with_several_processes_is_refused(
    federation: SmallFederation, change: dict[str, object]
) -> None:
    config = load_node_config(federation.homes.nodes["north"]).model_copy(update=change)
    consent = load_consent(federation.homes.nodes["north"] / CONSENT_FILE)
    with pytest.raises(NodeError, match="one process"):
        Seats(config, consent, World(rank=0, size=2))
