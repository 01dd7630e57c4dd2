"""A running service on loopback, and the small federation's nodes enrolled with it."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from coordinator.service.home import ServiceHome, ServiceSettings
from coordinator.service.serve import Ports, Service
from tests.service.postgresql import Server, running_server
from tests.small_federation import FEDERATION, ground, make_federation  # noqa: F401  (fixtures)


class RunningService:
    """A service in a thread of this process, on ports that the system gave."""

    def __init__(self, home: ServiceHome) -> None:
        self.home = home
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._service = Service(home)
        self.ports: Ports = self._do(self._service.start())

    @property
    def address(self) -> str:
        return f"localhost:{self.ports.exchange}"

    @property
    def pair(self) -> tuple[int, int]:
        return self.ports.exchange, self.ports.enrolment

    @property
    def metrics(self) -> CollectorRegistry:
        return self._service.metrics.collected

    def look(self) -> None:
        """Look at database and disk now, for the health."""
        self._do(self._service.health.look())

    def stop_serving(self) -> None:
        """Close the ports; `stop` may still be called."""
        self._do(self._service.stop())

    def stop(self) -> None:
        self._do(self._service.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _do(self, coroutine: object) -> object:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def service_home(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ServiceHome]:
    """A home on SQLite, or on the database that `on_both` names."""
    database = None
    if getattr(request, "param", "sqlite") == "postgresql":
        database = request.getfixturevalue("postgresql").new_database()
    settings = ServiceSettings(
        federation=FEDERATION,
        hosts=("localhost", "127.0.0.1"),
        port=0,
        enrolment_port=0,
        database=database,
    )
    home = ServiceHome.create(tmp_path / "service", settings)
    yield home
    home.close()


def with_settings(home: ServiceHome, **changes: object) -> ServiceHome:
    """The same home, opened with other settings."""
    settings = home.settings.model_copy(update=changes)
    return ServiceHome(**{**vars(home), "settings": settings})


@pytest.fixture
def service(service_home: ServiceHome) -> Iterator[RunningService]:
    running = RunningService(service_home)
    try:
        yield running
    finally:
        running.stop()
