from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SignedBytes(_message.Message):
    __slots__ = ("payload", "signature")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    signature: bytes
    def __init__(self, payload: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class KeyBundle(_message.Message):
    __slots__ = ("signed",)
    SIGNED_FIELD_NUMBER: _ClassVar[int]
    signed: SignedBytes
    def __init__(self, signed: _Optional[_Union[SignedBytes, _Mapping]] = ...) -> None: ...

class Roster(_message.Message):
    __slots__ = ("bundles",)
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    bundles: _containers.RepeatedCompositeFieldContainer[SignedBytes]
    def __init__(self, bundles: _Optional[_Iterable[_Union[SignedBytes, _Mapping]]] = ...) -> None: ...

class Reveal(_message.Message):
    __slots__ = ("signed",)
    SIGNED_FIELD_NUMBER: _ClassVar[int]
    signed: SignedBytes
    def __init__(self, signed: _Optional[_Union[SignedBytes, _Mapping]] = ...) -> None: ...

class Reveals(_message.Message):
    __slots__ = ("reveals",)
    REVEALS_FIELD_NUMBER: _ClassVar[int]
    reveals: _containers.RepeatedCompositeFieldContainer[SignedBytes]
    def __init__(self, reveals: _Optional[_Iterable[_Union[SignedBytes, _Mapping]]] = ...) -> None: ...

class SealedPacket(_message.Message):
    __slots__ = ("node", "sealed")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    node: str
    sealed: bytes
    def __init__(self, node: _Optional[str] = ..., sealed: _Optional[bytes] = ...) -> None: ...

class ProvenPacket(_message.Message):
    __slots__ = ("node", "sealed", "proof")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    node: str
    sealed: bytes
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, node: _Optional[str] = ..., sealed: _Optional[bytes] = ..., proof: _Optional[_Iterable[bytes]] = ...) -> None: ...

class EdgeCommitment(_message.Message):
    __slots__ = ("peer", "commitment")
    PEER_FIELD_NUMBER: _ClassVar[int]
    COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    peer: str
    commitment: bytes
    def __init__(self, peer: _Optional[str] = ..., commitment: _Optional[bytes] = ...) -> None: ...

class Upload(_message.Message):
    __slots__ = ("node", "header", "words_digest", "own_commitment", "edge_commitments", "packets")
    NODE_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    WORDS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OWN_COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    EDGE_COMMITMENTS_FIELD_NUMBER: _ClassVar[int]
    PACKETS_FIELD_NUMBER: _ClassVar[int]
    node: str
    header: SignedBytes
    words_digest: bytes
    own_commitment: bytes
    edge_commitments: _containers.RepeatedCompositeFieldContainer[EdgeCommitment]
    packets: _containers.RepeatedCompositeFieldContainer[SealedPacket]
    def __init__(self, node: _Optional[str] = ..., header: _Optional[_Union[SignedBytes, _Mapping]] = ..., words_digest: _Optional[bytes] = ..., own_commitment: _Optional[bytes] = ..., edge_commitments: _Optional[_Iterable[_Union[EdgeCommitment, _Mapping]]] = ..., packets: _Optional[_Iterable[_Union[SealedPacket, _Mapping]]] = ...) -> None: ...

class SurvivorsRequest(_message.Message):
    __slots__ = ("plan_digest", "headers")
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    plan_digest: bytes
    headers: _containers.RepeatedCompositeFieldContainer[SignedBytes]
    def __init__(self, plan_digest: _Optional[bytes] = ..., headers: _Optional[_Iterable[_Union[SignedBytes, _Mapping]]] = ...) -> None: ...

class SurvivorSignature(_message.Message):
    __slots__ = ("node", "plan_digest", "set_digest", "signature")
    NODE_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SET_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    node: str
    plan_digest: bytes
    set_digest: bytes
    signature: bytes
    def __init__(self, node: _Optional[str] = ..., plan_digest: _Optional[bytes] = ..., set_digest: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class UnmaskRequest(_message.Message):
    __slots__ = ("plan_digest", "headers", "certificate", "packets")
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    PACKETS_FIELD_NUMBER: _ClassVar[int]
    plan_digest: bytes
    headers: _containers.RepeatedCompositeFieldContainer[SignedBytes]
    certificate: _containers.RepeatedCompositeFieldContainer[SurvivorSignature]
    packets: _containers.RepeatedCompositeFieldContainer[ProvenPacket]
    def __init__(self, plan_digest: _Optional[bytes] = ..., headers: _Optional[_Iterable[_Union[SignedBytes, _Mapping]]] = ..., certificate: _Optional[_Iterable[_Union[SurvivorSignature, _Mapping]]] = ..., packets: _Optional[_Iterable[_Union[ProvenPacket, _Mapping]]] = ...) -> None: ...

class EdgeShare(_message.Message):
    __slots__ = ("dropped", "share")
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    dropped: str
    share: bytes
    def __init__(self, dropped: _Optional[str] = ..., share: _Optional[bytes] = ...) -> None: ...

class SurvivorShares(_message.Message):
    __slots__ = ("survivor", "own_share", "edge_shares")
    SURVIVOR_FIELD_NUMBER: _ClassVar[int]
    OWN_SHARE_FIELD_NUMBER: _ClassVar[int]
    EDGE_SHARES_FIELD_NUMBER: _ClassVar[int]
    survivor: str
    own_share: bytes
    edge_shares: _containers.RepeatedCompositeFieldContainer[EdgeShare]
    def __init__(self, survivor: _Optional[str] = ..., own_share: _Optional[bytes] = ..., edge_shares: _Optional[_Iterable[_Union[EdgeShare, _Mapping]]] = ...) -> None: ...

class UnmaskReply(_message.Message):
    __slots__ = ("node", "plan_digest", "set_digest", "shares")
    NODE_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SET_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    node: str
    plan_digest: bytes
    set_digest: bytes
    shares: _containers.RepeatedCompositeFieldContainer[SurvivorShares]
    def __init__(self, node: _Optional[str] = ..., plan_digest: _Optional[bytes] = ..., set_digest: _Optional[bytes] = ..., shares: _Optional[_Iterable[_Union[SurvivorShares, _Mapping]]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "clause", "detail")
    CODE_FIELD_NUMBER: _ClassVar[int]
    CLAUSE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    code: str
    clause: str
    detail: str
    def __init__(self, code: _Optional[str] = ..., clause: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...
