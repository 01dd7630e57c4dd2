"""Watches every call: counts and times it, and ends it with a fixed code where it is refused."""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from coordinator.service.metrics import Metrics
from coordinator.service.refusals import CODE_KEY, Refused, refusal_of

_LOG = logging.getLogger("arion.service")
_ABORT_S = 2.0
_FACTORIES = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


class CallWatch(grpc.aio.ServerInterceptor):
    """The one place where an error becomes an answer.

    Args:
        metrics: that count calls.

    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Wrap the handler of a call; unknown methods stay unknown."""
        handler = await continuation(details)
        if handler is None:
            return None
        method = str(details.method).rpartition("/")[2]
        name, make = _FACTORIES[handler.request_streaming, handler.response_streaming]
        read = handler.request_deserializer
        if handler.request_streaming:
            behaviour = self._watched(method, getattr(handler, name), lambda parts: parts)
        else:  # gRPC would end a call that it cannot read without a code of ours
            behaviour, read = self._watched(method, getattr(handler, name), read), None
        return make(
            behaviour, request_deserializer=read, response_serializer=handler.response_serializer
        )

    def _watched(
        self, method: str, behaviour: Callable[..., Any], read: Callable[[Any], Any]
    ) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(behaviour):

            async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
                async with self._watching(method, context):
                    async for response in behaviour(read(request), context):
                        yield response

            return stream

        async def call(request: Any, context: Any) -> Any:
            async with self._watching(method, context):
                return await behaviour(read(request), context)

        return call

    @asynccontextmanager
    async def _watching(self, method: str, context: Any) -> AsyncIterator[None]:
        started, outcome, refusal = time.monotonic(), "ok", None
        try:
            yield
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except grpc.aio.AbortError:
            outcome = "refused"
            raise
        except grpc.aio.InternalError as error:  # a write to a caller that is gone
            outcome = "cancelled"
            raise asyncio.CancelledError from error
        except Exception as error:
            refusal = refusal_of(error)
            outcome = refusal.code
            self._log(method, refusal.code, error)
        finally:  # counted before the caller knows
            self._metrics.count_call(method, outcome, time.monotonic() - started)
        if refusal is not None:
            await _end(context, refusal)

    @staticmethod
    def _log(method: str, code: str, error: Exception) -> None:
        """Faults of ours with what the system says, refusals as such; never a request's content."""
        extra = {"method": method, "code": code}
        if code == "internal":
            _LOG.error("%s failed: %s", method, type(error).__name__, extra=extra, exc_info=error)
        elif isinstance(error, OSError):
            _LOG.error("%s failed: %s", method, error, extra=extra)
        else:
            _LOG.info("%s was refused: %s", method, code, extra=extra)


async def _end(context: Any, refusal: Refused) -> None:
    """End a call; one whose caller is gone, or reads nothing, is dropped without a word."""
    context.set_trailing_metadata(((CODE_KEY, refusal.code),))
    try:
        await asyncio.wait_for(context.abort(refusal.status, str(refusal)), _ABORT_S)
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        raise asyncio.CancelledError from error
