"""Nodes behind an HTTP CONNECT proxy: joining, serving and renewing through it, and only so."""

import base64
import json
import socket
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arion.cli import app
from arion.toml_file import write_toml
from client.agent import Agent
from client.config import NodeError
from client.membership import collect, join, rotate
from client.proxy import proxy_of
from client.transport import LinkLost
from coordinator.service.home import ServiceHome
from tests.service.conftest import RunningService, with_settings
from tests.small_federation import Ground

HOST = "coordinator.example.invalid"  # a name that only the proxy can reach


class Proxy:
    """A small CONNECT proxy that finds every host on this machine, and keeps what it saw."""

    def __init__(self, login: str | None = None) -> None:
        self.asked: list[str] = []
        self.seen = b""
        self._login = login and base64.b64encode(login.encode()).decode()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                threading.Thread(target=self._tunnel, args=(client,), daemon=True).start()

    def _tunnel(self, client: socket.socket) -> None:
        with closing(client):
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096)
            line, *headers = head.decode().split("\r\n")
            self.asked.append(line)
            wanted = f"proxy-authorization: basic {self._login}".lower()
            if self._login and wanted not in [header.lower() for header in headers]:
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return
            port = int(line.split()[1].rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port)) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
                back.start()
                self._pump(client, server)
                back.join(10)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.seen += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()


@pytest.fixture
def far_service(service_home: ServiceHome) -> Iterator[RunningService]:
    """A service with a name that nothing here resolves."""
    running = RunningService(with_settings(service_home, hosts=(HOST,)))
    yield running
    running.stop()


def joined(service: RunningService, home: Path) -> None:
    join(home, HOST, service.pair, str(service.home.registry.invite("north")))
    service.home.registry.approve("north")
    assert collect(home, 5).certificate


def answers(service: RunningService, home: Path, payload: bytes) -> None:
    """An agent of this home answers a message with a payload."""
    (member,) = service.home.registry.members()
    mailbox = service.home.mailbox
    message = mailbox.post("r", member.address, "train.upload", ("UploadRequest", b"", payload))
    agent = Agent(home, lambda *question: ("Done", b"", question[3]))
    thread = threading.Thread(target=agent.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while (found := mailbox.first_answer([message])) is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert found[1] == payload
    agent.stop()
    thread.join(20)


def test_all_a_node_does_goes_through_the_proxy(
    far_service: RunningService, proxy: Proxy, tmp_path: Path
) -> None:
    """Joining, listening, a payload in both directions, a new key; the proxy sees TLS alone."""
    (tmp_path / "node.toml").write_text(f'proxy = "http://127.0.0.1:{proxy.port}"\n')
    joined(far_service, tmp_path)
    payload = b"nobody on the way reads this " * 10_000
    answers(far_service, tmp_path, payload)
    rotate(tmp_path)
    ports = far_service.ports
    assert set(proxy.asked) == {
        f"CONNECT {HOST}:{port} HTTP/1.1" for port in (ports.exchange, ports.enrolment)
    }
    assert len(proxy.seen) > 2 * len(payload)
    assert payload[:29] not in proxy.seen
    assert b"UploadRequest" not in proxy.seen


def test_an_officer_behind_a_proxy_drafts_and_compares(
    far_service: RunningService, proxy: Proxy, tmp_path: Path, ground: Ground
) -> None:
    home = tmp_path / "node"
    home.mkdir()
    setting = {"proxy": f"http://127.0.0.1:{proxy.port}"}
    write_toml(home / "node.toml", setting)
    joined(far_service, home)
    asked = len(proxy.asked)
    runner, data = CliRunner(), str(ground.data / "north.jsonl")
    draft = ["node", "consent", "draft", str(home), "--data", data, "--purpose", "triage"]
    drafted = runner.invoke(app, [*draft, "--base", str(ground.base_model)])
    assert drafted.exit_code == 0, drafted.output
    assert setting.items() <= tomllib.loads((home / "node.toml").read_text()).items()
    shown = runner.invoke(app, ["node", "members", str(home), "--json"])
    assert shown.exit_code == 0, shown.output
    assert {row["name"] for row in json.loads(shown.output)} == {"north", "coordinator"}
    assert len(proxy.asked) > asked
    again = runner.invoke(app, [*draft, "--base", str(ground.base_model)])
    assert (again.exit_code, "Change that" in again.stderr) == (2, True)


def test_the_environment_names_a_proxy_too(
    far_service: RunningService, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LinkLost):
        joined(far_service, tmp_path)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
    joined(far_service, tmp_path)
    assert proxy.asked


def test_a_proxy_asks_who_one_is(far_service: RunningService, tmp_path: Path) -> None:
    proxy = Proxy("clinic:hunter2")
    settings = tmp_path / "node.toml"
    settings.write_text(f'proxy = "http://clinic:wrong@127.0.0.1:{proxy.port}"\n')
    with pytest.raises(LinkLost) as caught:
        joined(far_service, tmp_path)
    assert "wrong" not in str(caught.value)
    settings.write_text(f'proxy = "http://clinic:hunter2@127.0.0.1:{proxy.port}"\n')
    joined(far_service, tmp_path)
    proxy.close()


def test_which_proxy_is_taken(tmp_path: Path) -> None:
    http = "http://p.example:3128"
    assert proxy_of(tmp_path, "h.example", {}) is None
    assert proxy_of(tmp_path, "h.example", {"https_proxy": http}) == http
    assert proxy_of(tmp_path, "h.example", {"HTTPS_PROXY": http, "HTTP_PROXY": "x"}) == http
    for listed in ("h.example", ".example", "example", "other, H.EXAMPLE ", "*"):
        assert proxy_of(tmp_path, "h.example", {"HTTPS_PROXY": http, "NO_PROXY": listed}) is None
    for listed in ("", "xample", "other.example", "h.example.org"):
        assert proxy_of(tmp_path, "h.example", {"HTTPS_PROXY": http, "no_proxy": listed}) == http
    (tmp_path / "node.toml").write_text('proxy = "http://own.example:1"\n')
    environment = {"HTTPS_PROXY": http, "NO_PROXY": "*"}
    assert proxy_of(tmp_path, "h.example", environment) == "http://own.example:1"
    (tmp_path / "node.toml").write_text('proxy = ""\n')
    assert proxy_of(tmp_path, "h.example", {"HTTPS_PROXY": http}) is None


@pytest.mark.parametrize(
    "url",
    ["https://u:hunter2@p:1", "http://u:hunter2@p", "socks5://u:hunter2@p:1", "hunter2",
     "http://u:hunter2@p:port", "http://u:hunter2@p:1/path"],
)  # fmt: skip
def test_other_proxies_are_refused_without_naming_a_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(NodeError, match=r"proxy\.example\.org") as caught:
        proxy_of(tmp_path, "h", {"HTTPS_PROXY": url})
    assert "hunter2" not in str(caught.value)
