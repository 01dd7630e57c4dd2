"""A hosted node: what a ClientApp's process hands over, and what it does where nobody answers."""

import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

import client.app
from client.config import NodeError
from client.host import SOCKET, Host, ask, is_hosted
from protos.flower import RUN_ID, new_message, parcel_of, records_of

QUESTION = ("EpochRequest", b"body", bytes(5_000_000))


def turned(action: str, kind: str, body: bytes, payload: bytes) -> tuple[str, bytes, bytes]:
    """Answers with what shows that every part came."""
    return f"{kind} to {action}", body[::-1], payload + b"!"


@contextmanager
def hosted(home: Path) -> Iterator[Path]:
    host = Host(home, turned)
    thread = threading.Thread(target=host.run)
    thread.start()
    try:
        yield home
    finally:
        host.stop()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Deeper than the name of a socket may be long."""
    home = tmp_path / ("institution-" * 12)
    home.mkdir()
    return home


def test_every_part_comes_and_goes(home: Path) -> None:
    with hosted(home):
        assert stat.S_IMODE((home / SOCKET).stat().st_mode) == 0o600
        assert ask(home, "query.keys", QUESTION) == (
            "EpochRequest to query.keys", b"ydob", QUESTION[2] + b"!",
        )  # fmt: skip
    assert not is_hosted(home)


def test_many_are_answered_at_once(home: Path) -> None:
    with hosted(home), ThreadPoolExecutor(8) as askers:
        bodies = [str(number).encode() for number in range(32)]
        answers = askers.map(lambda body: ask(home, "query.head", ("k", body, b"")), bodies)
        assert [body for _, body, _ in answers] == [body[::-1] for body in bodies]


def test_rubbish_ends_one_connection_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    with hosted(home):
        for rubbish in (b"", b"\xff" * 64, b"\x00\x00\x00\x02\xff\xfe" * 4):
            with socket.socket(socket.AF_UNIX) as asker, suppress(ConnectionResetError):
                asker.connect(SOCKET)
                asker.sendall(rubbish)
                asker.shutdown(socket.SHUT_WR)
                assert asker.recv(1) == b""
        assert ask(home, "query.head", ("k", b"ab", b""))[1] == b"ba"


def test_a_host_that_was_killed_is_named_and_replaced(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(SOCKET)
    assert is_hosted(home)
    with pytest.raises(NodeError, match="arion node host"):
        ask(home, "query.keys", QUESTION)
    with hosted(home):
        assert ask(home, "query.keys", QUESTION)[1] == b"ydob"


def test_the_client_app_hands_over_what_flower_brings(home: Path) -> None:
    message = new_message(records_of(*QUESTION), "query.keys", number=1, address=2)
    place = {"home": str(home)}
    with hosted(home):
        reply = client.app.app(message, context(place))
        assert parcel_of(reply.content)[:2] == ("EpochRequest to query.keys", b"ydob")
        with pytest.raises(NodeError, match=r"node\.toml"):  # not Flower: it opens the home itself
            client.app.app(message, context({**place, "runtime": "simulate"}))


def context(node_config: dict[str, str]) -> Context:
    return Context(RUN_ID, 2, node_config, RecordDict(), {})
