"""Uploads of which a part is on the coordinator's disk go on there; small ones when sent again."""

from collections.abc import Callable
from typing import Any

import pytest

import client.transport
from client.transport import _SENT_AGAIN_BYTES, Link, LinkLost
from tests.service.attacker import Attacker, attack
from tests.service.institutions import EXACT, Make
from tests.small_federation import NAMES

__all__ = ["attack"]  # a fixture


@pytest.mark.parametrize(
    ("size", "is_again", "sent_from"),
    [(_SENT_AGAIN_BYTES + 1, False, 1000), (2000, False, 0), (2000, True, 1000)],
)
def test_where_an_upload_goes_on(
    attack: Callable[..., Attacker],
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    is_again: bool,
    sent_from: int,
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
    assert link.answer(message, "Done", b"", payload, is_again=is_again)
    link.close()
    assert heads == [(sent_from, size - sent_from)]
    found = mailbox.first_answer([message])
    assert found is not None
    assert found[1] == payload


def test_a_node_that_is_cut_off_goes_on_where_it_was(
    institutions: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member's connection is lost as it begins to send; it sends the same answer again."""
    there, original, sent = institutions(EXACT, rounds=1), Link.answer, list[bool]()

    def answer(self: Link, message: str, *parts: Any, is_again: bool = False) -> bool:
        if not parts[2]:
            return original(self, message, *parts, is_again=is_again)
        sent.append(is_again)
        if len(sent) == 1:
            raise LinkLost("cut off")
        return original(self, message, *parts, is_again=is_again)

    monkeypatch.setattr(Link, "answer", answer)
    there.start(*NAMES)
    assert there.run().step == 1
    assert sorted(sent) == [False] * 4 + [True]
    assert there.bodies("coordinator", "round-recorded")[0]["survivors"] == list(NAMES)
