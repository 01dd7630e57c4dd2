"""Why an attempt at a sum ends without one."""

from enum import StrEnum


class AbortCode(StrEnum):
    """Why an upload, a reply or the whole attempt cannot be used."""

    BAD_UPLOAD = "bad-upload"
    BAD_EDGE = "bad-edge"
    CLOSED = "closed"
    BELOW_N_MIN = "below-n-min"
    FEW_NEIGHBOURS = "few-neighbours"
    EQUIVOCATION = "equivocation"
    NO_QUORUM = "no-quorum"
    BAD_REPLY = "bad-reply"
    BAD_SHARE = "bad-share"
    BAD_COUNT = "bad-count"
    BAD_NORM = "bad-norm"
    EPOCH_LOST = "epoch-lost"
    CANCELLED = "cancelled"


class SecAggAbort(ValueError):  # noqa: N818  (an abort is an outcome of the protocol)
    """A step that failed.

    Attributes:
        code: fixed code of the case.
        nodes: members that the fault lies with or between.

    """

    def __init__(self, code: AbortCode, message: str, nodes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.nodes = nodes
