"""How a call ends that is not answered: a gRPC status, a fixed code, and what to do."""

import errno

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from coordinator.service.bindings import RegistryError
from coordinator.service.blobs import BlobError
from coordinator.service.pki import PkiError

CODE_KEY = "arion-code"
"""Trailer of a refused call that holds its fixed code."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DISK_FULL = "Expected room on the coordinator's disk, got none. Call again once it has some."
_STORAGE = "Expected the coordinator to keep this, got a failing disk or database. Call again."
_UNREADABLE = "Expected a message of this call, got bytes that are none. Install the same version."
_INTERNAL = "Expected an answer, got an error of the coordinator's, which is in its log."


class Refused(ValueError):  # noqa: N818  (an outcome, not a fault)
    """A call that is refused.

    Attributes:
        status: of gRPC.
        code: fixed code of the case.

    """

    def __init__(self, status: grpc.StatusCode, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def refusal_of(error: Exception) -> Refused:
    """Return the refusal that an error means on the wire; what a disk says is not passed on."""
    status, code, message = grpc.StatusCode.INTERNAL, "internal", _INTERNAL
    match error:
        case Refused():
            return error
        case NotImplementedError():
            status, code = grpc.StatusCode.UNIMPLEMENTED, "unknown-call"
            message = "Expected a call that this service has, got another."
        case DecodeError():
            status, code, message = grpc.StatusCode.INVALID_ARGUMENT, "bad-message", _UNREADABLE
        case RegistryError(code="revoked"):
            status, code, message = grpc.StatusCode.UNAUTHENTICATED, error.code, str(error)
        case RegistryError():
            status, code, message = grpc.StatusCode.PERMISSION_DENIED, error.code, str(error)
        case PkiError():
            status, code = grpc.StatusCode.PERMISSION_DENIED, "bad-certificate"
            message = str(error)
        case BlobError():
            status, code, message = grpc.StatusCode.INVALID_ARGUMENT, "bad-answer", str(error)
        case OSError() if is_disk_full(error):
            status, code, message = grpc.StatusCode.RESOURCE_EXHAUSTED, "disk-full", _DISK_FULL
        case OSError():
            status, code, message = grpc.StatusCode.UNAVAILABLE, "storage-failed", _STORAGE
    return Refused(status, code, message)


def is_disk_full(error: OSError) -> bool:
    """Tell a full disk from a failing one, also where the error was raised from another."""
    causes = (error, error.__cause__)
    return getattr(error, "is_full", False) or any(
        isinstance(cause, OSError) and cause.errno in _FULL for cause in causes
    )
