"""Folders of other classes, written once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.foreign.families import write_family

Family = Callable[[str], Path]


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The folder of a family; tests that change one write their own."""
    folders: dict[str, Path] = {}

    def of(model_type: str) -> Path:
        if model_type not in folders:
            place = tmp_path_factory.mktemp("families") / model_type
            folders[model_type] = write_family(model_type, place)
        return folders[model_type]

    return of
