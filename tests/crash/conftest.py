"""One server of acting processes for all tests here: it imports everything once."""

from collections.abc import Iterator

import pytest

from tests.crash.actors import Actors


@pytest.fixture(scope="session")
def actors() -> Iterator[Actors]:
    server = Actors("tests.crash.scenarios")
    yield server
    server.close()
