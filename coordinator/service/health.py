"""Health by grpc.health.v1: SERVING while the database answers and the disk has room."""

import asyncio
import logging
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as health
from grpc_health.v1 import health_pb2_grpc as health_rpc

from coordinator.service.limits import Limits
from coordinator.service.mailbox import Mailbox
from coordinator.service.metrics import Metrics
from coordinator.service.refusals import Refused

SERVICES = ("", "arion.v1.Enrolment", "arion.v1.Exchange")
_EVERY_S = 5.0
_LOG = logging.getLogger("arion.service")
_STATUS = health.HealthCheckResponse


class Health(health_rpc.HealthServicer):
    """Says whether the service does its work; one answer a call, no stream that a stranger holds.

    Args:
        mailbox: whose database and disk are looked at.
        limits: `reserve_bytes` is the room that the disk must have.
        metrics: one of them says the same.

    """

    def __init__(self, mailbox: Mailbox, limits: Limits, metrics: Metrics) -> None:
        self._mailbox, self._limits, self._metrics = mailbox, limits, metrics
        self._trouble: str | None = "nobody looked yet"

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return SERVING or NOT_SERVING."""
        if request.service not in SERVICES:
            message = "Expected a service of the coordinator's, got another."
            raise Refused(grpc.StatusCode.NOT_FOUND, "unknown-service", message)
        return _STATUS(status=_STATUS.NOT_SERVING if self._trouble else _STATUS.SERVING)

    async def look(self) -> None:
        """Look at database and disk once."""
        trouble = await asyncio.to_thread(self._find)
        if trouble != self._trouble:
            _LOG.log(
                logging.WARNING if trouble else logging.INFO, "health: %s", trouble or "serving"
            )
        self._trouble = trouble
        self._metrics.serving.set(0 if trouble else 1)

    async def watch(self) -> None:
        """Look again and again until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await self.look()

    def _find(self) -> str | None:
        try:
            self._mailbox.newest()
            free = self._mailbox.blobs.free_bytes()
        except OSError as error:
            return str(error)
        if free < self._limits.reserve_bytes:
            return f"Expected {self._limits.reserve_bytes} free bytes on the disk, got {free}."
        return None
