from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HelloRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("newest", "oldest", "time")
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    OLDEST_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    newest: int
    oldest: int
    time: float
    def __init__(self, newest: _Optional[int] = ..., oldest: _Optional[int] = ..., time: _Optional[float] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("protocol", "token", "csr", "identity_key", "signature")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    token: str
    csr: bytes
    identity_key: bytes
    signature: bytes
    def __init__(self, protocol: _Optional[int] = ..., token: _Optional[str] = ..., csr: _Optional[bytes] = ..., identity_key: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CollectRequest(_message.Message):
    __slots__ = ("csr_digest",)
    CSR_DIGEST_FIELD_NUMBER: _ClassVar[int]
    csr_digest: bytes
    def __init__(self, csr_digest: _Optional[bytes] = ...) -> None: ...

class CollectReply(_message.Message):
    __slots__ = ("status", "certificate", "federation", "coordinator_key")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_KEY_FIELD_NUMBER: _ClassVar[int]
    status: str
    certificate: bytes
    federation: str
    coordinator_key: bytes
    def __init__(self, status: _Optional[str] = ..., certificate: _Optional[bytes] = ..., federation: _Optional[str] = ..., coordinator_key: _Optional[bytes] = ...) -> None: ...

class ListenRequest(_message.Message):
    __slots__ = ("protocol",)
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    def __init__(self, protocol: _Optional[int] = ...) -> None: ...

class Envelope(_message.Message):
    __slots__ = ("message", "action", "kind", "body", "payload_digest", "payload_bytes")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    message: str
    action: str
    kind: str
    body: bytes
    payload_digest: bytes
    payload_bytes: int
    def __init__(self, message: _Optional[str] = ..., action: _Optional[str] = ..., kind: _Optional[str] = ..., body: _Optional[bytes] = ..., payload_digest: _Optional[bytes] = ..., payload_bytes: _Optional[int] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("digest", "offset")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    offset: int
    def __init__(self, digest: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class ProgressRequest(_message.Message):
    __slots__ = ("message", "payload_digest")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    message: str
    payload_digest: bytes
    def __init__(self, message: _Optional[str] = ..., payload_digest: _Optional[bytes] = ...) -> None: ...

class ProgressReply(_message.Message):
    __slots__ = ("offset",)
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    offset: int
    def __init__(self, offset: _Optional[int] = ...) -> None: ...

class AnswerHead(_message.Message):
    __slots__ = ("message", "kind", "body", "payload_digest", "payload_bytes", "offset")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    message: str
    kind: str
    body: bytes
    payload_digest: bytes
    payload_bytes: int
    offset: int
    def __init__(self, message: _Optional[str] = ..., kind: _Optional[str] = ..., body: _Optional[bytes] = ..., payload_digest: _Optional[bytes] = ..., payload_bytes: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class AnswerPart(_message.Message):
    __slots__ = ("head", "data")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    head: AnswerHead
    data: bytes
    def __init__(self, head: _Optional[_Union[AnswerHead, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class AnswerReply(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: str
    def __init__(self, status: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListReply(_message.Message):
    __slots__ = ("index",)
    INDEX_FIELD_NUMBER: _ClassVar[int]
    index: bytes
    def __init__(self, index: _Optional[bytes] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("artefact", "file", "offset")
    ARTEFACT_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    artefact: bytes
    file: str
    offset: int
    def __init__(self, artefact: _Optional[bytes] = ..., file: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class LedgersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("csr", "signature")
    CSR_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    csr: bytes
    signature: bytes
    def __init__(self, csr: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("certificate",)
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    def __init__(self, certificate: _Optional[bytes] = ...) -> None: ...

class MembersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MemberShown(_message.Message):
    __slots__ = ("name", "identity_key")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_KEY_FIELD_NUMBER: _ClassVar[int]
    name: str
    identity_key: bytes
    def __init__(self, name: _Optional[str] = ..., identity_key: _Optional[bytes] = ...) -> None: ...

class MembersReply(_message.Message):
    __slots__ = ("members",)
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[MemberShown]
    def __init__(self, members: _Optional[_Iterable[_Union[MemberShown, _Mapping]]] = ...) -> None: ...
