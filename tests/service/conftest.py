"""A running service on loopback, and the small federation's nodes enrolled with it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import client.app
import client.transport
from client.arriving import Arriving
from coordinator.service.home import ServiceHome, ServiceSettings
from privacy.payloads import older_payload_digest
from tests.service.institutions import Institutions, Make
from tests.service.postgresql import Server, running_server
from tests.service.running import RunningService
from tests.small_federation import (  # noqa: F401  (fixtures)
    FEDERATION,
    SmallFederation,
    ground,
    make_federation,
)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def service_home(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ServiceHome]:
    """A home on SQLite, or on the database that `on_both` names; by a relative path."""
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
    home = ServiceHome.create(Path(os.path.relpath(tmp_path / "service")), settings)
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


@pytest.fixture
def institutions(
    service: RunningService,
    make_federation: Callable[..., SmallFederation],  # noqa: F811  (the fixture)
) -> Iterator[Make]:
    """Build the members of the service: `step` changes the mechanism, the rest the settings."""
    made: list[Institutions] = []

    def make(step: dict[str, Any] | None = None, **changes: Any) -> Institutions:
        federation = make_federation(
            step, seed=None, **{"runtime": "arion-grpc", "deadline_s": 30.0, **changes}
        )
        made.append(Institutions(service, federation))
        return made[0]

    yield make
    for each in made:
        each.stop()
    client.app.close_nodes()


def is_sha256(data: bytes, digest: bytes) -> bool:
    """What version 2 takes for a payload's name."""
    return digest == older_payload_digest(data)


@pytest.fixture
def old_node(monkeypatch: pytest.MonkeyPatch) -> None:

    def whole(self: Arriving, digest: bytes, size: int) -> bytes | None:
        data = self._bytes.getvalue()
        return data if len(data) == size and is_sha256(data, digest) else None

    monkeypatch.setattr(client.transport, "PROTOCOL", 2)
    monkeypatch.setattr(client.transport, "OLDEST_PROTOCOL", 1)
    monkeypatch.setattr(client.transport, "payload_digest", older_payload_digest)
    monkeypatch.setattr(Arriving, "whole", whole)
