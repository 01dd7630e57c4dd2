"""Uploads of which a part is on the coordinator's disk: large ones go on there, small ones anew."""

from collections.abc import Callable
from typing import Any

import pytest

import client.transport
from client.transport import _SENT_AGAIN_BYTES, Link
from tests.service.attacker import Attacker, attack

__all__ = ["attack"]  # a fixture


@pytest.mark.parametrize(("size", "sent_from"), [(_SENT_AGAIN_BYTES + 1, 1000), (2000, 0)])
def test_where_an_upload_goes_on(
    attack: Callable[..., Attacker], monkeypatch: pytest.MonkeyPatch, size: int, sent_from: int
) -> None:
    evil, payload = attack(), bytes(range(250)) * (size // 250 + 1)
    payload, message = payload[:size], evil.asked()
    mailbox = evil.service.home.mailbox
    begun = mailbox.blobs.receive(message, 0, size)
    begun.write(payload[:1000])
    begun.close()
    original, heads = client.transport._parts, []

    def parts(head: Any, rest: memoryview) -> Any:
        heads.append((head.offset, len(rest)))
        return original(head, rest)

    monkeypatch.setattr(client.transport, "_parts", parts)
    link = Link(evil.service.address, evil.credentials)
    assert link.answer(message, "Done", b"", payload)
    link.close()
    assert heads == [(sent_from, size - sent_from)]
    found = mailbox.first_answer([message])
    assert found is not None
    assert found[1] == payload
