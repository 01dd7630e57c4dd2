"""One process serves a home, and one service has a port."""

from pathlib import Path

import pytest

from coordinator.errors import RunError
from coordinator.service.home import ServiceHome, ServiceSettings
from tests.service.running import RunningService
from tests.small_federation import FEDERATION


def test_a_second_process_does_not_serve_the_home(
    service: RunningService, service_home: ServiceHome
) -> None:
    with pytest.raises(RunError, match="nobody serves"):
        RunningService(service_home)
    service.stop_serving()
    again = RunningService(service_home)  # a service that has ended holds nothing
    again.stop()


@pytest.mark.parametrize("taken", ["port", "enrolment_port", "metrics_port"])
def test_a_port_that_another_service_has(
    service: RunningService, tmp_path: Path, taken: str
) -> None:
    """A restored home that is served beside the old one would get half of its calls."""
    ports = {"port": 0, "enrolment_port": 0, taken: service.ports.exchange}
    settings = ServiceSettings(federation=FEDERATION, hosts=("localhost",), **ports)
    home = ServiceHome.create(tmp_path / "restored", settings)
    with pytest.raises(RunError, match="a port that is free"):
        RunningService(home)
    home.close()
