"""Two gloo processes that stay for the whole session: starting them costs more than the tests."""

import os
import socket
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from torch import multiprocessing

from models.parallel import processes

SIZE = 2


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def be_rank(rank: int, port: int) -> None:
    """What torchrun tells a process."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(SIZE),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)


def _work(rank: int, port: int, pipe: Connection) -> None:
    be_rank(rank, port)
    with processes(timeout_s=60) as world:
        while (job := pipe.recv()) is not None:
            function, args = job
            pipe.send(function(world, *args))


class Gang:
    """Runs a function of (world, ...) in every process and returns what each returned."""

    def __init__(self, pipes: list[Connection]) -> None:
        self._pipes = pipes

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((function, args))
        return [pipe.recv() for pipe in self._pipes]


@pytest.fixture(scope="session")
def gang() -> Iterator[Gang]:
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(SIZE)]
    port = free_port()
    workers = [
        context.Process(target=_work, args=(rank, port, far), daemon=True)
        for rank, (_, far) in enumerate(pairs)
    ]
    for worker, (_, far) in zip(workers, pairs, strict=True):
        worker.start()
        far.close()  # a worker that dies is an EOFError here, not silence
    yield Gang([near for near, _ in pairs])
    for near, _ in pairs:
        near.send(None)
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
