"""What lies in the mailbox: messages for nodes, and their answers."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Post:
    """A message for a node, or an answer; its payload is a blob.

    Attributes:
        message: identifier; an answer bears that of its question.
        address: the node's number.
        action: what is asked, such as "train.upload"; empty in an answer.
        kind, body: protobuf message and its encoding.
        payload_digest, payload_bytes: of the payload; empty and 0 where there is none.

    """

    message: str
    address: int
    action: str
    kind: str
    body: bytes
    payload_digest: bytes = b""
    payload_bytes: int = 0


@dataclass(frozen=True)
class Question:
    """A message for a node that is about to be posted.

    Attributes:
        address: the node's number.
        action: what is asked.
        parcel: kind, body and payload.
        digest: of the payload, where it is known: one payload may go to many nodes.

    """

    address: int
    action: str
    parcel: tuple[str, bytes, bytes]
    digest: bytes | None = None


def post_of(row: Any, message: str, action: str = "") -> Post:
    """Read a row of either table, to which the address was joined."""
    return Post(
        message, row.address, action, row.kind, row.body, row.payload_digest, row.payload_bytes
    )
