"""A node that lives on while the processes that ask it come and go.

Flower's SuperNodes start a process for each message, and a node keeps the keys of an epoch, its
plans and its model in memory. So a host keeps the node, and the ClientApp in those processes hands
it what came, over a socket in the node's home that its user alone may use. Nothing is trusted more
for coming this way: consent, gate and ledger are the node's.
"""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

from client.agent import Answering
from client.config import NodeError

SOCKET = "node.sock"

_LOG = logging.getLogger("arion.node")
_ONLY_ITS_USER = 0o600
_QUESTION_PARTS, _ANSWER_PARTS = 4, 3
_LARGEST_PART = 1 << 36  # bytes: more than a model; what claims to be longer is no message


class Host:
    """Answers what comes over the socket of a home, until it is stopped.

    Args:
        home: of a node that this process holds open, so that no other host listens there.
        answering: what answers; `client.app.answer` in production.

    """

    def __init__(self, home: Path, answering: Answering) -> None:
        self._answering = answering
        self._path = home / SOCKET
        self._path.unlink(missing_ok=True)  # of a host that was killed
        self._listener = socket.socket(socket.AF_UNIX)
        with _short_name(home) as name:
            self._listener.bind(name)
        self._path.chmod(_ONLY_ITS_USER)
        self._listener.listen()

    def run(self) -> None:
        """Serve; returns when stopped."""
        with self._listener:
            while True:
                try:
                    accepted, _ = self._listener.accept()
                except OSError:  # that is how `stop` ends it
                    return
                asker = Connection(accepted.detach())
                threading.Thread(target=self._answer, args=(asker,), daemon=True).start()

    def stop(self) -> None:
        """Take no more questions."""
        self._path.unlink(missing_ok=True)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def _answer(self, asker: Connection) -> None:
        with asker:
            try:
                action, kind, *rest = (
                    asker.recv_bytes(_LARGEST_PART) for _ in range(_QUESTION_PARTS)
                )
                answer = self._answering(action.decode(), kind.decode(), *rest)
                for part in (answer[0].encode(), *answer[1:]):
                    asker.send_bytes(part)
            except (OSError, EOFError, UnicodeDecodeError):
                _LOG.warning(
                    "a process that asked this node went away, or asked what is no message"
                )


def is_hosted(home: Path) -> bool:
    """Tell whether a host keeps the node of a home, or did and was killed."""
    return (home / SOCKET).exists()


def ask(home: Path, action: str, question: tuple[str, bytes, bytes]) -> tuple[str, bytes, bytes]:
    """Have the host of a home answer: kind, body and payload in, the same out.

    Raises:
        NodeError: no host answers.

    """
    kind, body, payload = question
    try:
        with _short_name(home) as name, closing(socket.socket(socket.AF_UNIX)) as open_:
            open_.connect(name)
            host = Connection(open_.detach())
        with host:
            for part in (action.encode(), kind.encode(), body, payload):
                host.send_bytes(part)
            answer, *rest = (host.recv_bytes(_LARGEST_PART) for _ in range(_ANSWER_PARTS))
    except (OSError, EOFError) as error:
        raise NodeError(
            "Expected this node's host to answer, got none. Start it: arion node host HOME."
        ) from error
    return answer.decode(), rest[0], rest[1]


@contextmanager
def _short_name(home: Path) -> Iterator[str]:
    """Name the socket by an open folder: its name has room for 107 bytes, and homes lie deep."""
    folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{SOCKET}"
    finally:
        os.close(folder)
