"""What tests of a coordinator that plays foul have in common."""

import tomllib
from collections.abc import Callable
from typing import Any

import pytest

from arion.toml_file import write_toml
from client.config import CONSENT_FILE
from privacy.rounds import PlanCode, PlanRefused
from protos.round_messages import UploadRequest
from tests.small_hands import Hands


def refused(hands: Hands, code: PlanCode, act: Callable[[], object], sealed: int = 0) -> None:
    """The node refuses with this code; nothing new is sealed or debited, and its ledger says so."""
    node = hands.nodes["north"]
    before = hands.federation.bodies("north", "release-debited")
    with pytest.raises(PlanRefused) as caught:
        act()
    assert caught.value.code is code, caught.value
    assert len(hands.outbox("north")) == sealed
    assert hands.federation.bodies("north", "release-debited") == before
    assert hands.federation.bodies("north", "refusal")[-1]["code"] == str(code)
    node.close()
    assert hands.federation.verified()["north"].is_ok


def ask(hands: Hands, request: UploadRequest, vector: bytes | None = None) -> None:
    hands.nodes["north"].release(request, memoryview(vector or hands.vector))


def rewrite_consent(hands: Hands, **clauses: Any) -> None:
    """North's officer signs off another consent, and the node starts again."""
    path = hands.federation.homes.nodes["north"] / CONSENT_FILE
    write_toml(path, tomllib.loads(path.read_text()) | clauses)
    hands.reopen("north")
