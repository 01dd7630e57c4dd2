"""Every message's contract: one exact encoding, and nothing but WireError for anything else."""

from typing import Any

import pytest

from protos.messages import WireError


def check_encoding(message: Any) -> None:
    """Encode, decode, encode."""
    data = message.to_bytes()
    again = type(message).from_bytes(data)
    assert again == message
    assert again.to_bytes() == data


def check_damaged(message: Any) -> None:
    """Unknown fields, and bytes that are lost."""
    data = message.to_bytes()
    wrong = [data + b"\xfa\x07\x01x", data + b"\x0a"]
    if data:
        wrong.append(data[:-1])
    for foul in wrong:
        with pytest.raises(WireError, match="Expected"):
            type(message).from_bytes(foul)


def check_garbage(kind: Any, data: bytes) -> None:
    """Bytes are the encoding of a message of this kind, or no message."""
    try:
        message = kind.from_bytes(data)
    except WireError:
        return
    assert message.to_bytes() == data
