"""The service's two ports: enrolment under server TLS, all else under mutual TLS.

Every call of a member is checked against the registry and its certificate's expiry: a connection
that was opened before a revocation is refused from its next call on, and its stream is closed.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

import grpc

from coordinator.service.blobs import BlobError, Incoming
from coordinator.service.mailbox import Mailbox, Post
from coordinator.service.pki import Peer, PkiError, read_peer
from coordinator.service.registry import Member, Registry, RegistryError
from privacy.enrolment import PROTOCOL, EnrolmentError, Invitation
from protos.arion.v1 import service_pb2 as pb
from protos.arion.v1 import service_pb2_grpc as rpc
from protos.wire import LARGEST_MESSAGE_BYTES

_LOG = logging.getLogger("arion.service")
_POLL_S = 0.05
_RECHECK_S = 1.0
_IDLE_S = 60.0
_ENVELOPE_ROOM = 1 << 20
_LARGEST_PAYLOAD = 1 << 40
_NAMES = 64
_Result = TypeVar("_Result")

OPTIONS = (
    ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES + _ENVELOPE_ROOM),
    ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES + _ENVELOPE_ROOM),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_concurrent_streams", 64),
)


@dataclass(frozen=True)
class Identity:
    """What the service says of itself.

    Attributes:
        federation: identifier.
        coordinator_key: Ed25519 key that signs plans; members compare its fingerprint.

    """

    federation: str
    coordinator_key: bytes


class Enrolment(rpc.EnrolmentServicer):
    """Joining, without a client certificate."""

    def __init__(self, registry: Registry, identity: Identity) -> None:
        self._registry, self._identity = registry, identity

    async def Join(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Consume an invitation."""
        await _check_protocol(request.protocol, context)
        try:
            secret = Invitation.parse(request.token).secret
        except EnrolmentError as error:
            await _refuse(context, grpc.StatusCode.PERMISSION_DENIED, "bad-invitation", str(error))
        name = await _registry_call(
            context,
            lambda: self._registry.join(
                secret, request.csr, request.identity_key, request.signature
            ),
        )
        _LOG.info("%s has joined and waits for approval", name)
        return pb.JoinReply(name=name)

    async def Collect(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return the certificate once it was approved."""
        member = await _registry_call(context, lambda: self._registry.collect(request.csr_digest))
        return pb.CollectReply(
            status=member.status,
            certificate=member.certificate if member.status == "active" else b"",
            federation=self._identity.federation,
            coordinator_key=self._identity.coordinator_key,
        )


class Exchange(rpc.ExchangeServicer):
    """The exchange of messages with nodes, under their certificates."""

    def __init__(self, registry: Registry, mailbox: Mailbox) -> None:
        self._registry, self._mailbox = registry, mailbox

    async def Listen(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Send messages as they come; close the stream of a member that was revoked."""
        await _check_protocol(request.protocol, context)
        member = await self._member(context)
        await asyncio.to_thread(self._registry.note_seen, member.name)
        told: set[str] = set()
        checked = asyncio.get_running_loop().time()
        while True:
            posts = await asyncio.to_thread(self._mailbox.waiting, member.address, told)
            for post in posts:
                told.add(post.message)
                yield pb.Envelope(
                    message=post.message,
                    action=post.action,
                    kind=post.kind,
                    body=post.body,
                    payload_digest=post.payload_digest,
                    payload_bytes=post.payload_bytes,
                )
            await asyncio.sleep(_POLL_S)
            if asyncio.get_running_loop().time() > checked + _RECHECK_S:
                await self._member(context)
                checked = asyncio.get_running_loop().time()

    async def Fetch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Send a payload that a message for this node names."""
        member = await self._member(context)
        digest = bytes(request.digest)
        blobs = self._mailbox.blobs
        if not await asyncio.to_thread(self._mailbox.may_fetch, member.address, digest):
            await _refuse(
                context,
                grpc.StatusCode.NOT_FOUND,
                "unknown-payload",
                "Expected the payload of a message for this node, got another digest.",
            )
        chunks = blobs.chunks(digest, request.offset)
        while chunk := await asyncio.to_thread(next, chunks, b""):
            yield pb.Chunk(data=chunk)

    async def Progress(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say how much of an answer's payload is on the disk."""
        member = await self._member(context)
        if not await asyncio.to_thread(self._mailbox.is_waiting, request.message, member.address):
            return pb.ProgressReply(offset=0)
        return pb.ProgressReply(offset=self._mailbox.blobs.progress(request.message))

    async def Answer(self, parts: Any, context: Any) -> Any:  # noqa: N802
        """Keep an answer; acknowledged means present, once."""
        member = await self._member(context)
        first = await _next_part(parts, context)
        if first.WhichOneof("part") != "head" or first.head.payload_bytes > _LARGEST_PAYLOAD:
            await _refuse_argument(context, "Expected an answer's head first, got another part.")
        head = first.head
        if not await asyncio.to_thread(self._mailbox.is_waiting, head.message, member.address):
            return pb.AnswerReply(status="over")
        try:
            if head.payload_bytes:
                await self._receive(head, parts, context)
            kept = await asyncio.to_thread(
                self._mailbox.answer,
                Post(
                    head.message,
                    member.address,
                    "",
                    head.kind[:_NAMES],
                    head.body,
                    head.payload_digest,
                    head.payload_bytes,
                ),
            )
        except BlobError as error:
            await _refuse_argument(context, str(error))
        return pb.AnswerReply(status="kept" if kept else "over")

    async def Renew(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Sign a new connection key of a member that is connected."""
        await self._member(context)
        certificate = await _registry_call(
            context, lambda: self._registry.renew(self._peer(context), request.csr)
        )
        return pb.RenewReply(certificate=certificate)

    async def _receive(self, head: Any, parts: Any, context: Any) -> None:
        incoming: Incoming = self._mailbox.blobs.receive(
            head.message, head.offset, head.payload_bytes
        )
        try:
            while not incoming.is_whole:
                part = await _next_part(parts, context)
                if part.WhichOneof("part") != "data":
                    raise BlobError("Expected chunks after the head, got another head.")
                await asyncio.to_thread(incoming.write, part.data)
        finally:
            await asyncio.to_thread(incoming.close)

    async def _member(self, context: Any) -> Member:
        """Which node calls, as the registry has it now; other roles have no business here."""
        member = await _registry_call(
            context, lambda: self._registry.check(self._peer(context)), denied=True
        )
        if member.role != "node":
            await _refuse(
                context,
                grpc.StatusCode.PERMISSION_DENIED,
                "wrong-role",
                f"Expected a node, got the {member.role} {member.name!r}.",
            )
        return member

    def _peer(self, context: Any) -> Peer:
        pem = context.auth_context()["x509_pem_cert"][0]
        return read_peer(pem, self._registry.federation, datetime.now(UTC))


async def _registry_call(
    context: Any, act: Callable[[], _Result], *, denied: bool = False
) -> _Result:
    try:
        return await asyncio.to_thread(act)
    except RegistryError as error:
        code = grpc.StatusCode.UNAUTHENTICATED if denied else grpc.StatusCode.PERMISSION_DENIED
        await _refuse(context, code, error.code, str(error))
    except PkiError as error:
        await _refuse(context, grpc.StatusCode.PERMISSION_DENIED, "bad-certificate", str(error))
    raise AssertionError("a refusal ends the call")


async def _check_protocol(found: int, context: Any) -> None:
    if found != PROTOCOL:
        await _refuse(
            context,
            grpc.StatusCode.FAILED_PRECONDITION,
            "other-protocol",
            f"Expected version {PROTOCOL} of the exchange, got {found}. Install a version of "
            "Arion that speaks the coordinator's.",
        )


async def _next_part(parts: Any, context: Any) -> Any:
    try:
        return await asyncio.wait_for(anext(parts), _IDLE_S)
    except (StopAsyncIteration, TimeoutError):
        await _refuse_argument(context, "Expected the rest of an answer, got none in time.")


async def _refuse_argument(context: Any, message: str) -> NoReturn:
    await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "bad-answer", message)


async def _refuse(context: Any, status: Any, code: str, message: str) -> NoReturn:
    """End a call with a fixed code in its trailers and a message that says what to do."""
    context.set_trailing_metadata((("arion-code", code),))
    await context.abort(status, message)
    raise AssertionError("abort() ends the call")
