"""Fixtures every test package shares."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import client.epoch

ROOT = Path(__file__).resolve().parents[1]


torch.set_num_threads(1)

# Started in a script's background, this process ignores interrupts, and so would the commands that
# tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """After each test: a command that ran in this process may have set another number."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _memory_of_its_own() -> Iterator[None]:
    """A folder of tmpfs for this process's tests, where there is tmpfs.

    A node that starts deletes the keys of homes that are gone; a test that puts a home back, and so
    takes it away for a moment, would lose them to another process's test.
    """
    tmpfs = client.epoch._TMPFS
    if not (tmpfs.is_dir() and os.access(tmpfs, os.W_OK)):
        yield
        return
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir=tmpfs) as folder:
        patch.setattr(client.epoch, "_TMPFS", Path(folder))
        yield


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of data sets and test vectors; tests that need it skip where it is absent."""
    path = (ROOT / os.environ.get("ARION_SHARED", "../shared")).resolve()
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}: set ARION_SHARED to the folder that holds it")
    return path
