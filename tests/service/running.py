"""A coordinator's service in a thread of this process."""

import asyncio
import threading

from prometheus_client import CollectorRegistry

from coordinator.service.home import ServiceHome
from coordinator.service.serve import Ports, Service


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
