"""The line of the far benchmark holds bytes back as long as it says, and alters none."""

import socket
import threading
import time
from urllib.parse import urlsplit

import pytest

from benchmarks.round_far import QUESTIONS, Line, far

SENT = bytes(range(256)) * 800  # 204,800 bytes: 0.041 s at 40 Mbit/s


def echo(server: socket.socket) -> None:
    """Send one connection's bytes back, until it ends."""
    connection, _ = server.accept()
    with connection:
        while data := connection.recv(1 << 16):
            connection.sendall(data)


@pytest.mark.parametrize("line", [Line(0.0), Line(0.2), Line(0.1, 40)])
def test_bytes_come_back_late_and_unaltered(line: Line) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, far(line) as url:
        threading.Thread(target=echo, args=(server,), daemon=True).start()
        with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)) as tunnel:
            tunnel.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % server.getsockname()[1])
            assert tunnel.recv(1 << 10).startswith(b"HTTP/1.1 200")
            began, came = time.monotonic(), b""
            tunnel.sendall(SENT)
            while len(came) < len(SENT):
                came += tunnel.recv(1 << 16)
            took = time.monotonic() - began
    assert came == SENT
    on_the_line = 8e-6 * len(SENT) / line.megabits if line.megabits else 0.0
    assert took >= line.round_trip_s + on_the_line  # never sooner; later on a busy machine


def test_what_a_line_takes_at_least() -> None:
    assert Line(0.1).seconds(10**6) == pytest.approx(0.1 * QUESTIONS)
    assert Line(0.0, 48).seconds(10**6) == pytest.approx(1.0)  # 4 bytes down, 2 up
