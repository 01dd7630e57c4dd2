from protos.arion.v1 import secagg_pb2 as _secagg_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EpochRequest(_message.Message):
    __slots__ = ("federation", "epoch")
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    federation: str
    epoch: int
    def __init__(self, federation: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class UploadRequest(_message.Message):
    __slots__ = ("plan", "recipe")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    plan: _secagg_pb2.SignedBytes
    recipe: bytes
    def __init__(self, plan: _Optional[_Union[_secagg_pb2.SignedBytes, _Mapping]] = ..., recipe: _Optional[bytes] = ...) -> None: ...

class HeadOffer(_message.Message):
    __slots__ = ("head", "proof")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    head: _secagg_pb2.SignedBytes
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, head: _Optional[_Union[_secagg_pb2.SignedBytes, _Mapping]] = ..., proof: _Optional[_Iterable[bytes]] = ...) -> None: ...

class HeadCountersigned(_message.Message):
    __slots__ = ("signed", "own")
    SIGNED_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    signed: _secagg_pb2.SignedBytes
    own: _secagg_pb2.SignedBytes
    def __init__(self, signed: _Optional[_Union[_secagg_pb2.SignedBytes, _Mapping]] = ..., own: _Optional[_Union[_secagg_pb2.SignedBytes, _Mapping]] = ...) -> None: ...

class OwnHeadShown(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: _secagg_pb2.SignedBytes
    def __init__(self, head: _Optional[_Union[_secagg_pb2.SignedBytes, _Mapping]] = ...) -> None: ...

class OwnHead(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: _secagg_pb2.SignedBytes
    def __init__(self, head: _Optional[_Union[_secagg_pb2.SignedBytes, _Mapping]] = ...) -> None: ...

class HeadQuery(_message.Message):
    __slots__ = ("ledger",)
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    ledger: str
    def __init__(self, ledger: _Optional[str] = ...) -> None: ...

class HeadHeld(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: _secagg_pb2.SignedBytes
    def __init__(self, head: _Optional[_Union[_secagg_pb2.SignedBytes, _Mapping]] = ...) -> None: ...

class RunClose(_message.Message):
    __slots__ = ("federation", "run")
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    federation: str
    run: str
    def __init__(self, federation: _Optional[str] = ..., run: _Optional[str] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
