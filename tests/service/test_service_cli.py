"""`arion coordinator` and `arion node`, as operators and institutions use them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from arion.cli import app
from arion.coordinator_cli import print_members

ARION = [sys.executable, "-c", "from arion.cli import main; main()"]


def arion(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def free_ports() -> tuple[str, str]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1]), str(two.getsockname()[1])


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*ARION, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(port: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the service did not listen")


def test_an_institution_joins_over_two_processes(tmp_path: Path) -> None:
    """init, serve, invite, join, approve, status; then kill -9, serve again, and still there."""
    home, node = str(tmp_path / "srv"), str(tmp_path / "node")
    ports = free_ports()
    made = arion(
        "coordinator", "init", home, "--federation", "hospitals", "--host", "localhost",
        "--port", ports[0], "--enrolment-port", ports[1],
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    service = started("coordinator", "serve", home)
    try:
        wait_for(ports[1])
        invitation = arion("node", "invite", "north", "--coordinator", home).output.strip()
        joining = started(
            "node", "join", "localhost", invitation, "--home", node,
            "--port", ports[0], "--enrolment-port", ports[1], "--wait", "60",
        )  # fmt: skip
        end = time.monotonic() + 60
        while "pending" not in (listed := arion("node", "list", "--coordinator", home).output):
            assert time.monotonic() < end
            time.sleep(0.1)
        service.send_signal(signal.SIGKILL)
        service.wait()
        service = started("coordinator", "serve", home)
        wait_for(ports[1])
        approved = arion("node", "approve", "north", "--coordinator", home)
        assert approved.exit_code == 0
        output, errors = joining.communicate(timeout=60)
        assert joining.returncode in (0, 2), errors
        if joining.returncode == 2:  # it asked while nobody served: the same command goes on
            again = arion(
                "node", "join", "localhost", invitation, "--home", node,
                "--port", ports[0], "--enrolment-port", ports[1], "--wait", "60",
            )  # fmt: skip
            assert again.exit_code == 0, again.output
            output = again.output
    finally:
        service.send_signal(signal.SIGINT)
        service.communicate(timeout=30)
    assert "approved in 'hospitals'" in output
    (own,) = re.findall(r"this node's fingerprint is (arion:\S+)", output)
    assert own in listed
    status = json.loads(arion("coordinator", "status", home, "--json").output)
    assert [(row["name"], row["status"]) for row in status["members"]] == [("north", "active")]
    assert status["fingerprint"] in output
    assert os.stat(tmp_path / "node" / "identity.key").st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("ago_s", "says"),
    [
        (None, "never seen"),
        (-3, "here"),
        (50, "here"),
        (61, "seen 1 min ago"),
        (7_300, "seen 2 h ago"),
        (200_000, "seen 2 d ago"),
    ],
)
def test_the_list_says_when_a_member_was_seen(
    ago_s: float | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"name": "north", "role": "node", "status": "active", "fingerprint": "arion:0"}
    print_members([row | {"seen": None if ago_s is None else time.time() - ago_s}], [])
    assert capsys.readouterr().out.endswith(f"arion:0  {says}\n")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--port", "99999"],
            "port: Input should be less than 65536, got 99999. Correct this option",
        ),
        (["--host", "local host"], "that can be dialled, got 'local host'"),
        (["--port", "7444"], "a port for each of its doors, got [7444, 7444]"),
    ],
)
def test_an_option_that_no_home_can_have(options: list[str], says: str, tmp_path: Path) -> None:
    made = ["coordinator", "init", str(tmp_path / "srv"), "--federation", "f", "--host", "h"]
    result = arion(*made, *options)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "srv").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["backup", "srv", "nowhere/x.tar", "--passphrase-file", "pass"], "who may write there"),
        (["backup", "srv", "x.tar", "--passphrase-file", "none"], "at none, got none. Check"),
        (["restore", "none.tar", "r", "--passphrase-file", "pass"], "at none.tar, got none. Check"),
    ],
)
def test_a_path_that_leads_nowhere(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pass").write_text("a passphrase of some length")
    assert arion("coordinator", "init", "srv", "--federation", "f", "--host", "h").exit_code == 0
    result = arion("coordinator", *words)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"enrolment_port"', '"enrolment_prt"', "enrolment_prt: there is no such key, perhaps"),
        ('"approvals": 1', '"approvals": 7', "service.json: approvals: "),
        ('"database": null', '"database": "mysql://a:hunter2@h/d"', "begins with postgresql"),
        ('"database": null', '"database": "postgresql+psycopg://a:p@s:hunter2@h:5/d"', "no URL"),
        ('"federation"', '"federation', "Invalid JSON"),
    ],
)
def test_a_mistake_in_the_settings_is_named(old: str, new: str, says: str, tmp_path: Path) -> None:
    home = tmp_path / "srv"
    assert (
        arion("coordinator", "init", str(home), "--federation", "f", "--host", "h").exit_code == 0
    )
    text = (home / "service.json").read_text()
    assert old in text
    (home / "service.json").write_text(text.replace(old, new))
    result = arion("coordinator", "status", str(home))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert says in result.stderr
    assert result.stderr.endswith(". Correct it.\n")
    assert "hunter2" not in result.stderr


def test_no_part_of_a_password_is_shown_when_a_home_is_made(tmp_path: Path) -> None:
    url = "postgresql+psycopg://a:p@s:hunter2@h:5/d"
    result = arion(
        "coordinator", "init", str(tmp_path / "srv"), "--federation", "f", "--host", "h",
        "--database", url,
    )  # fmt: skip
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "got no URL" in result.stderr
    assert "hunter2" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("coordinator", "status", "HOME/none"), "arion coordinator init"),
        (("node", "invite", "No Name", "--coordinator", "HOME/srv"), "a-z, 0-9"),
        (("node", "approve", "north", "--coordinator", "HOME/srv"), "nobody"),
        (("node", "revoke", "north", "--coordinator", "HOME/srv"), "Expected a member"),
        (("node", "join", "localhost", "arion1.x", "--home", "HOME/n"), "Copy all of"),
        (("node", "run", "HOME/n"), "Join first"),
        (
            ("coordinator", "init", "HOME/srv", "--federation", "f", "--host", "h"),
            "without a coordinator",
        ),
    ],
)
def test_mistakes_end_with_one_line(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    home = str(tmp_path / "srv")
    assert arion("coordinator", "init", home, "--federation", "f", "--host", "h").exit_code == 0
    result = arion(*(part.replace("HOME", str(tmp_path)) for part in arguments))
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
