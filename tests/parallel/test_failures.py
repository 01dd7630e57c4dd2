"""A process that dies, hangs or errs ends all the others soon, and one of them says why."""

import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import pytest
import torch
from torch import distributed, multiprocessing

from models.parallel import World, processes
from tests.parallel.conftest import SIZE, be_rank, free_port

LIMIT_S = 4.0


def die(world: World) -> None:
    os._exit(9)


def hang(world: World) -> None:
    time.sleep(60)


def err(world: World) -> None:
    raise ValueError("Expected a folder, got none. Give one.")


def rest(world: World) -> None:
    """Rank 0 of a node has nothing to do until its next round."""
    time.sleep(1.5 * LIMIT_S)
    world.from_first(b"work")


def _fail(
    rank: int, port: int, pipe: Connection, failing: int, failure: Callable[[World], None]
) -> None:
    be_rank(rank, port)
    began = time.monotonic()
    try:
        with processes(timeout_s=LIMIT_S) as world:
            world.mean(torch.ones(1))
            if rank == failing:
                failure(world)
            distributed.all_reduce(torch.ones(1))
    except Exception as error:
        pipe.send((type(error).__name__, str(error), time.monotonic() - began))
        os._exit(2)


@pytest.mark.parametrize(
    ("failing", "failure"),
    [
        (1, err),
        (1, die),
        pytest.param(0, die, marks=pytest.mark.slow),  # rank 0 holds the store of the last words
        pytest.param(1, hang, marks=pytest.mark.slow),
    ],
)
def test_no_process_waits_for_ever(failing: int, failure: Callable[[World], None]) -> None:
    context = multiprocessing.get_context("spawn")
    pipes, workers, port = [], [], free_port()
    for rank in range(SIZE):
        near, far = context.Pipe()
        worker = context.Process(
            target=_fail, args=(rank, port, far, failing, failure), daemon=True
        )
        worker.start()
        far.close()
        pipes.append(near)
        workers.append(worker)
    name, text, took_s = pipes[1 - failing].recv()
    assert took_s < 20
    if failure is err:
        assert pipes[failing].recv()[:2] == ("ValueError", "Expected a folder, got none. Give one.")
        assert name == "StoppedElsewhereError"
        assert text == "Process 1: Expected a folder, got none. Give one."
    else:
        assert name == "ParallelError"
        assert "Expected all 2 processes to go on" in text
    for worker in workers:
        worker.kill()


def _follow(rank: int, port: int, pipe: Connection) -> None:
    be_rank(rank, port)
    with processes(timeout_s=LIMIT_S) as world:
        if rank == 0:
            rest(world)
        else:
            pipe.send(world.from_first())


@pytest.mark.slow
def test_waiting_for_work_has_no_time_limit() -> None:
    context = multiprocessing.get_context("spawn")
    (near, far), port = context.Pipe(), free_port()
    for rank in range(SIZE):
        context.Process(target=_follow, args=(rank, port, far), daemon=True).start()
    far.close()
    assert near.recv() == b"work"


def test_without_torchrun_a_process_is_alone() -> None:
    with processes() as world:
        assert world.size == 1
        assert world.from_first(b"abc") == b"abc"
        assert world.mean(torch.tensor(3.0)) == 3.0
