"""Server reflection, for operators alone: what the port offers is nobody else's business."""

from collections.abc import AsyncIterator
from typing import Any

from grpc_reflection.v1alpha import reflection_pb2_grpc as reflection_rpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from coordinator.service.callers import Callers

SERVICES = (
    "arion.v1.Exchange",
    "arion.v1.Artefacts",
    "arion.v1.Audit",
    "grpc.reflection.v1alpha.ServerReflection",
)


class OperatorsReflection(ReflectionServicer):
    """Answers operators; every question is a call of its own to the registry."""

    def __init__(self, callers: Callers) -> None:
        super().__init__(SERVICES)
        self._callers = callers

    async def ServerReflectionInfo(  # noqa: N802
        self, questions: Any, context: Any
    ) -> AsyncIterator[Any]:
        """Answer questions of an operator."""
        await self._callers.admit(context, "operator")
        async for answer in super().ServerReflectionInfo(questions, context):
            yield answer


add_to_server = reflection_rpc.add_ServerReflectionServicer_to_server
