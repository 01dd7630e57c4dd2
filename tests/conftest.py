"""Fixtures every test package shares."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """After each test: a command that ran in this process may have set another number."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of data sets and test vectors; tests that need it skip where it is absent."""
    path = (ROOT / os.environ.get("ARION_SHARED", "../shared")).resolve()
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}: set ARION_SHARED to the folder that holds it")
    return path
