"""The port of members, under mutual TLS: messages and payloads, in both directions.

Every call is checked against the registry and its certificate's expiry: a connection that was
opened before a revocation is refused from its next call on, and its stream is closed.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc

from coordinator.service.arrivals import Arrivals
from coordinator.service.blobs import BlobError, Incoming, UploadBusyError
from coordinator.service.callers import Callers, check_protocol
from coordinator.service.limits import Limits, Slots
from coordinator.service.mailbox import Mailbox
from coordinator.service.members import SEEN_EVERY_S
from coordinator.service.older_names import OlderNames
from coordinator.service.pki import ROLES
from coordinator.service.posts import Post
from coordinator.service.refusals import Refused
from coordinator.service.registry import Registry
from coordinator.service.sending import Sender, too_slow
from coordinator.service.sharing import SharedPayloads
from privacy.enrolment import BLAKE3_PAYLOADS
from privacy.payloads import DIGEST_BYTES
from protos.arion.v1 import service_pb2 as pb
from protos.arion.v1 import service_pb2_grpc as rpc

_LOG = logging.getLogger("arion.service")
_RECHECK_S = 1.0
_LOOK_AGAIN_S = 0.02
_LARGEST_NAME = 64


class Exchange(rpc.ExchangeServicer):
    """The exchange of messages with nodes, under their certificates.

    Args:
        callers: admits members.
        registry: renews certificates.
        mailbox: what waits.
        arrivals: wakes the streams.
        limits: of a member.

    """

    def __init__(
        self,
        callers: Callers,
        registry: Registry,
        mailbox: Mailbox,
        arrivals: Arrivals,
        limits: Limits,
    ) -> None:
        self._callers, self._registry, self._mailbox = callers, registry, mailbox
        self._arrivals, self._limits = arrivals, limits
        self._streams = Slots(limits.streams, "too-many-streams", "open streams")
        self._transfers = Slots(limits.transfers, "too-many-transfers", "transfers")
        self._older = OlderNames(mailbox)
        self._shared = SharedPayloads(mailbox.blobs)

    async def Listen(self, request: Any, context: Any) -> None:  # noqa: N802
        """Send messages as they come; close the stream of a member that was revoked."""
        check_protocol(request.protocol)
        member = await self._callers.admit(context, "node")
        peer = self._callers.peer(context)
        with self._streams.take(member.name), self._arrivals.bell(member.address) as bell:
            await asyncio.to_thread(self._registry.note_seen, member.name)
            told: set[str] = set()
            sender = Sender(context, self._limits)
            while True:
                bell.clear()
                posts = await asyncio.to_thread(self._mailbox.waiting, member.address)
                for post in posts:
                    if post.message not in told and await self._tell(
                        sender, post, request.protocol, member.name
                    ):
                        told.add(post.message)
                told &= {post.message for post in posts}
                try:
                    await asyncio.wait_for(bell.wait(), _RECHECK_S)
                except TimeoutError:
                    await self._callers.check(peer, "node")

    async def watch_streams(self) -> None:
        """Note who listens, until cancelled: runs go on without those that do not."""
        while True:
            await asyncio.sleep(SEEN_EVERY_S)
            try:
                await asyncio.to_thread(self._registry.note_seen, *self._streams.holders)
            except OSError as error:
                _LOG.error("who listens cannot be noted: %s", error)

    async def Fetch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Send a payload that a message for this node names."""
        member = await self._callers.admit(context, "node")
        digest = await self._asked(member.address, bytes(request.digest))
        size = await asyncio.to_thread(self._mailbox.blobs.size, digest) or 0
        sender = Sender(context, self._limits, size)
        with self._transfers.take(member.name):
            async for chunk in self._chunks(digest, min(request.offset, size), size):
                await sender.send(chunk)

    async def _chunks(self, digest: bytes, offset: int, size: int) -> AsyncIterator[Any]:
        """Yield a payload's chunks; those that others fetch at about the same time are shared."""
        if not offset and (shared := self._shared.of(digest, size)):
            async for chunk in shared.chunks():
                yield chunk
            return
        alone = self._mailbox.blobs.chunks(digest, offset)
        while data := await asyncio.to_thread(next, alone, b""):
            yield pb.Chunk(data=data)

    async def Progress(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say how much of an answer is on the disk; about no message, it is a sign of life."""
        member = await self._callers.admit(context, "node")
        if not request.message:
            await asyncio.to_thread(self._registry.note_seen, member.name)
        if not await asyncio.to_thread(self._mailbox.is_waiting, request.message, member.address):
            return pb.ProgressReply(offset=0)
        return pb.ProgressReply(offset=self._mailbox.blobs.progress(request.message))

    async def Answer(self, parts: Any, context: Any) -> Any:  # noqa: N802
        """Keep an answer; acknowledged means present, once."""
        member = await self._callers.admit(context, "node")
        with self._transfers.take(member.name):
            head = _checked_head(await self._next(parts, self._limits.idle_s))
            if head.payload_bytes:
                waiting = self._mailbox.is_waiting
                if not await asyncio.to_thread(waiting, head.message, member.address):
                    return pb.AnswerReply(status="over")
                # While it is held, the bytes need not be read again to be named.
                _held = await self._receive(head, parts, member.address)
            answer = Post(
                head.message,
                member.address,
                "",
                head.kind,
                head.body,
                head.payload_digest,
                head.payload_bytes,
            )
            kept = await asyncio.to_thread(self._mailbox.answer, answer)
        return pb.AnswerReply(status="kept" if kept else "over")

    async def Members(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say who else was approved, for people to compare."""
        await self._callers.admit(context, "node", "auditor", "operator")
        found = await asyncio.to_thread(self._registry.nodes)
        shown = [pb.MemberShown(name=m.name, identity_key=m.identity_key) for m in found]
        return pb.MembersReply(members=shown)

    async def Renew(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Sign a new connection key of a member that is connected."""
        await self._callers.admit(context, *ROLES, may_be_rotated=True)
        peer = self._callers.peer(context)
        certificate = await asyncio.to_thread(
            self._registry.renew, peer, request.csr, request.signature
        )
        return pb.RenewReply(certificate=certificate)

    async def _tell(self, sender: Sender, post: Post, protocol: int, name: str) -> bool:
        """Send a message, its payload by a name that the node's version knows; False: not now."""
        digest = post.payload_digest
        if digest and protocol < BLAKE3_PAYLOADS:
            try:
                digest = await self._older.of(digest)
            except BlobError as error:  # a run that ended deleted it, and its other will put it
                _LOG.warning("%s is not told %s yet: %s", name, post.action, error)
                return False
        await sender.send(_envelope(post, digest))
        return True

    async def _asked(self, address: int, digest: bytes) -> bytes:
        """Return by its own name a payload that a node asks for by the name that it was told."""
        own = self._older.own(digest)
        found = await asyncio.to_thread(self._mailbox.fetchable, address, own)
        if found is None:
            raise Refused(
                grpc.StatusCode.NOT_FOUND,
                "unknown-payload",
                "Expected the payload of a message for this node, got another digest. Listen "
                "again: the message is over, or is told anew.",
            )
        return found

    async def _receive(self, head: Any, parts: Any, address: int) -> Incoming:
        end = asyncio.get_running_loop().time() + self._limits.transfer_s(head.payload_bytes)
        await asyncio.to_thread(self._check_room, head, address)
        incoming = await self._begin(head, end)
        try:
            while not incoming.is_whole:
                part = await self._next(parts, self._left(end))
                if part.WhichOneof("part") != "data" or not part.data:
                    raise BlobError("Expected chunks after the head, got another part.")
                await asyncio.to_thread(incoming.write, part.data)
        finally:
            await asyncio.to_thread(incoming.close)
        return incoming

    async def _begin(self, head: Any, end: float) -> Incoming:
        """Go on with an upload, once nobody checks what came of it."""
        while True:
            try:
                # In a thread: an older connection's flush may have to be waited for.
                return await asyncio.to_thread(
                    self._mailbox.blobs.receive, head.message, head.offset, head.payload_bytes
                )
            except UploadBusyError:
                if not self._left(end):
                    raise
                await asyncio.sleep(_LOOK_AGAIN_S)

    def _check_room(self, head: Any, address: int) -> None:
        """Refuse what goes beyond the member's quota, or into the disk's reserve."""
        blobs = self._mailbox.blobs
        coming = head.payload_bytes - head.offset
        held = self._mailbox.held_bytes(address)
        if held - blobs.progress(head.message) + head.payload_bytes > self._limits.quota_bytes:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "over-quota",
                f"Expected at most {self._limits.quota_bytes} bytes of this node's answers on the "
                "disk, got more. Have the operator raise the quota.",
            )
        if blobs.free_bytes() - coming < self._limits.reserve_bytes:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "disk-full",
                f"Expected room for {coming} bytes, got a disk that is nearly full. The same call "
                "works once it is not.",
            )

    def _left(self, end: float) -> float:
        """Seconds for the next part of a transfer that must be over at `end`."""
        return min(self._limits.idle_s, max(end - asyncio.get_running_loop().time(), 0.0))

    async def _next(self, parts: Any, seconds: float) -> Any:
        try:
            return await asyncio.wait_for(anext(parts), seconds)
        except StopAsyncIteration:
            raise BlobError("Expected the rest of an answer, got its end.") from None
        except TimeoutError:
            raise too_slow() from None


def _envelope(post: Post, digest: bytes) -> Any:
    return pb.Envelope(
        message=post.message,
        action=post.action,
        kind=post.kind,
        body=post.body,
        payload_digest=digest,
        payload_bytes=post.payload_bytes,
    )


def _checked_head(part: Any) -> Any:
    """Return an answer's head whose lengths are what they must be."""
    head = part.head
    if part.WhichOneof("part") != "head":
        raise BlobError("Expected an answer's head first, got another part.")
    digest_bytes = DIGEST_BYTES if head.payload_bytes else 0
    if len(head.payload_digest) != digest_bytes or not 0 < len(head.kind) <= _LARGEST_NAME:
        raise BlobError("Expected a head with a kind and a digest of its payload, got another.")
    return head
