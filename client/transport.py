"""How a node reaches its coordinator: it dials out, listens on its own stream, and answers.

Uploads go on at the offset that is on the coordinator's disk; downloads are checked against the
digest that the message names.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from client.arriving import Arriving
from privacy.enrolment import BLAKE3_PAYLOADS, NAME, OLDEST_PROTOCOL, PROTOCOL
from privacy.payloads import older_payload_digest, payload_digest
from protos.arion.v1 import service_pb2 as pb
from protos.arion.v1 import service_pb2_grpc as rpc
from protos.wire import LARGEST_MESSAGE_BYTES

CHUNK_BYTES = 1 << 20
_SENT_AGAIN_BYTES = 4 << 20
"""Of up to so many bytes it is not asked first whether some are there from before a restart."""
_CALL_S = 60.0
_TRANSFER_S = 600.0
_KEY_BYTES = 32
_LARGEST_PAYLOAD = 1 << 40
_OPTIONS = (
    ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES + CHUNK_BYTES),
    ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES + CHUNK_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_reconnect_backoff_ms", 15_000),
)
_LOST = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)

_PASSING = frozenset(
    {"disk-full", "storage-failed", "too-slow", "too-many-calls", "too-many-streams",
     "too-many-transfers"}
)  # fmt: skip


class LinkLost(ConnectionError):  # noqa: N818  (an outcome, not a fault)
    """The coordinator cannot be reached at the moment; try again later."""


class LinkRefused(ValueError):  # noqa: N818  (an outcome, not a fault)
    """The coordinator refuses.

    Attributes:
        code: fixed code of the case.

    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Credentials:
    """What a node shows and what it accepts, PEM.

    Attributes:
        authority: the certificate that the coordinator's must be signed by.
        key, certificate: the node's own connection key; empty while it joins.

    """

    authority: bytes
    key: bytes = b""
    certificate: bytes = b""


class Link:
    """A connection to the coordinator; TLS always, in both directions once the node has joined.

    Args:
        address: host and port.
        credentials: what is shown and accepted.
        proxy: URL of an HTTP CONNECT proxy; None dials directly.

    """

    def __init__(self, address: str, credentials: Credentials, proxy: str | None = None) -> None:
        own = (credentials.key, credentials.certificate) if credentials.certificate else ()
        route = ("grpc.http_proxy", proxy) if proxy else ("grpc.enable_http_proxy", 0)
        self._channel = grpc.secure_channel(
            address, grpc.ssl_channel_credentials(credentials.authority, *own), (*_OPTIONS, route)
        )
        self._exchange = rpc.ExchangeStub(self._channel)
        self._enrolment = rpc.EnrolmentStub(self._channel)
        self._artefacts = rpc.ArtefactsStub(self._channel)
        self._audit = rpc.AuditStub(self._channel)
        self._spoken = PROTOCOL  # or the version before, once that was agreed on

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def join(self, token: str, csr: bytes, identity_key: bytes, signature: bytes) -> str:
        """Consume an invitation; return the name that it is for."""
        request = pb.JoinRequest(
            protocol=PROTOCOL,
            token=token,
            csr=csr,
            identity_key=identity_key,
            signature=signature,
        )
        try:
            return str(_call(self._enrolment.Join, request).name)
        except LinkRefused as refusal:
            request.protocol = _one_back(refusal)
            return str(_call(self._enrolment.Join, request).name)

    def hello(self) -> Any:
        """Return what a coordinator says of itself: newest, oldest, time.

        Raises:
            LinkRefused: as every call.

        """
        return _call(self._enrolment.Hello, pb.HelloRequest())

    def collect(self, csr: bytes) -> Any:
        """Return the state of a request: status, certificate, federation, coordinator_key."""
        request = pb.CollectRequest(csr_digest=hashlib.sha256(csr).digest())
        return _call(self._enrolment.Collect, request)

    def renew(self, csr: bytes, signature: bytes) -> bytes:
        """Return a certificate for a new connection key, which the identity key signed."""
        request = pb.RenewRequest(csr=csr, signature=signature)
        return bytes(_call(self._exchange.Renew, request).certificate)

    def members(self) -> dict[str, bytes]:
        """Return the identity keys of all approved nodes by name, as the coordinator relays them.

        Raises:
            LinkRefused: names or keys that are none; also as every call.

        """
        shown = _call(self._exchange.Members, pb.MembersRequest()).members
        found = {member.name: bytes(member.identity_key) for member in shown}
        if not all(NAME.fullmatch(name) and len(key) == _KEY_BYTES for name, key in found.items()):
            raise LinkRefused("bad-members", "Expected names and keys of members, got others.")
        return found

    def listen(self, seconds: float) -> Iterator[Any]:
        """Yield messages for this node as they come, for some time; LinkLost at its end.

        A coordinator that does not speak our version yet is spoken to in the one before.
        """
        try:
            yield from self._listen(PROTOCOL, seconds)
        except LinkRefused as refusal:
            yield from self._listen(_one_back(refusal), seconds)

    def _listen(self, protocol: int, seconds: float) -> Iterator[Any]:
        try:
            for envelope in self._exchange.Listen(
                pb.ListenRequest(protocol=protocol), timeout=seconds
            ):
                self._spoken = protocol
                yield envelope
        except grpc.RpcError as error:
            raise _outcome(error) from error
        raise LinkLost("Expected an open stream, got its end.")

    def fetch(self, digest: bytes, size: int, begun: Arriving) -> bytes:
        """Return a payload.

        Args:
            digest, size: as its message names it.
            begun: what came of it before the connection was lost; what comes is added.

        Raises:
            LinkLost, LinkRefused: as every call; also where the bytes are not those named.

        """
        if size > _LARGEST_PAYLOAD:
            raise LinkRefused("too-large", f"Expected a payload of a model's size, got {size}.")
        try:
            request = pb.FetchRequest(digest=digest, offset=begun.came)
            for chunk in self._exchange.Fetch(request):
                begun.add(chunk.data, size)
                if begun.came > size:
                    break
        except grpc.RpcError as error:
            raise _outcome(error) from error
        data = begun.whole(digest, size)
        if data is None:
            raise LinkRefused(
                "other-payload", f"Expected {size} bytes with the digest named, got others."
            )
        return data

    def index(self) -> bytes:
        """Return the index of the artefacts that the coordinator serves, JSON."""
        return bytes(_call(self._artefacts.List, pb.ListRequest()).index)

    def pull(self, artefact: bytes, file: str, offset: int) -> Iterator[bytes]:
        """Yield a file of an artefact from an offset on; nothing of it is checked."""
        request = pb.PullRequest(artefact=artefact, file=file, offset=offset)
        try:
            for chunk in self._artefacts.Pull(request):
                yield chunk.data
        except grpc.RpcError as error:
            raise _outcome(error) from error

    def ledgers(self) -> Iterator[bytes]:
        """Yield the bundle of the coordinator's ledgers; nothing of it is checked."""
        try:
            for chunk in self._audit.Ledgers(pb.LedgersRequest(), timeout=_TRANSFER_S):
                yield chunk.data
        except grpc.RpcError as error:
            raise _outcome(error) from error

    def is_member(self) -> bool:
        """Ask for nothing, as a member may; raises LinkLost or LinkRefused where it may not."""
        reply = _call(self._exchange.Progress, pb.ProgressRequest(message="0" * 32))
        return bool(reply.offset == 0)

    def say_there(self) -> None:
        """Tell the coordinator that the node is there; raises as every call."""
        _call(self._exchange.Progress, pb.ProgressRequest())

    def answer(
        self, message: str, kind: str, body: bytes, payload: bytes, *, is_again: bool = False
    ) -> bool:
        """Send an answer; False where nobody waits for it any more.

        Args:
            message: identifier of the question.
            kind, body, payload: of the answer.
            is_again: whether it was begun before; some of a payload may be there then.

        Raises:
            LinkLost, LinkRefused: as every call.

        """
        digest = self._name(payload) if payload else b""
        offset = 0
        if payload and (is_again or len(payload) > _SENT_AGAIN_BYTES):
            request = pb.ProgressRequest(message=message, payload_digest=digest)
            offset = min(int(_call(self._exchange.Progress, request).offset), len(payload))
        head = pb.AnswerHead(
            message=message,
            kind=kind,
            body=body,
            payload_digest=digest,
            payload_bytes=len(payload),
            offset=offset,
        )
        reply = _call(self._exchange.Answer, _parts(head, memoryview(payload)[offset:]), None)
        return bool(reply.status == "kept")

    def _name(self, payload: bytes) -> bytes:
        """Return what the coordinator, which may be a version back, calls a payload."""
        name = payload_digest if self._spoken >= BLAKE3_PAYLOADS else older_payload_digest
        return name(payload)


def _one_back(refusal: LinkRefused) -> int:
    """Return the version to try after a refusal, or raise it where it is about something else."""
    if refusal.code != "other-protocol" or OLDEST_PROTOCOL == PROTOCOL:
        raise refusal
    return OLDEST_PROTOCOL


def _parts(head: Any, payload: memoryview) -> Iterator[Any]:
    yield pb.AnswerPart(head=head)
    for start in range(0, len(payload), CHUNK_BYTES):
        yield pb.AnswerPart(data=bytes(payload[start : start + CHUNK_BYTES]))


def _call(method: Any, request: Any, timeout: float | None = _CALL_S) -> Any:
    try:
        return method(request, timeout=timeout)
    except grpc.RpcError as error:
        raise _outcome(error) from error
    except ValueError as error:  # what gRPC says of a channel that `close` closed meanwhile
        raise LinkLost("Expected an open connection, got one that was closed.") from error


def _outcome(error: Any) -> LinkLost | LinkRefused:
    """What became of a call: lost, to be tried again, or refused for good."""
    status, text = error.code(), str(error.details())[:500]
    code = dict(error.trailing_metadata() or ()).get("arion-code")
    if code in _PASSING or (code is None and status in _LOST):
        return LinkLost(f"Expected an answer of the coordinator, got {code or status.name}: {text}")
    if code is None and status == grpc.StatusCode.UNIMPLEMENTED:
        code = "unknown-call"  # of a coordinator that does not have this service at all
    return LinkRefused(str(code or status.name.lower()), text)
