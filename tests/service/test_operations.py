"""What operators see of a running service: health, metrics, reflection, logs and status."""

import contextlib
import io
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2 as health
from grpc_health.v1 import health_pb2_grpc as health_rpc
from grpc_reflection.v1alpha import reflection_pb2 as reflection
from grpc_reflection.v1alpha import reflection_pb2_grpc as reflection_rpc
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from arion.cli import app
from arion.logs import JsonLines, TextLines
from client.membership import collect, join
from client.transport import Credentials, Link, LinkRefused
from coordinator.service.home import ServiceHome
from coordinator.service.limits import Limits
from coordinator.service.probe import State, state_of, state_words
from tests.service.conftest import with_settings
from tests.service.members import channel_of, enrol
from tests.service.running import RunningService

SERVING = health.HealthCheckResponse.SERVING
NOT_SERVING = health.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def service(service_home: ServiceHome) -> Iterator[RunningService]:
    """With metrics and reflection, which are off by default."""
    running = RunningService(with_settings(service_home, metrics_port=0, reflection=True))
    yield running
    running.stop()


def joined_as(service: RunningService, home: Path, name: str, role: str) -> Credentials:
    join(home, "localhost", service.pair, str(service.home.registry.invite(name, role)))
    service.home.registry.approve(name)
    return collect(home, 5).credentials


def metrics_of(service: RunningService) -> dict[str, float]:
    url = f"http://127.0.0.1:{service.ports.metrics}/metrics"
    with urllib.request.urlopen(url) as answer:
        text = answer.read().decode()
    return {
        f"{sample.name} {' '.join(sample.labels.values())}".strip(): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_health_is_that_of_database_and_disk(service: RunningService) -> None:
    with channel_of(service.ports.enrolment, Credentials(service.home.authority.pem)) as channel:
        stub = health_rpc.HealthStub(channel)
        for name in ("", "arion.v1.Exchange", "arion.v1.Enrolment"):
            assert stub.Check(health.HealthCheckRequest(service=name)).status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health.HealthCheckRequest(service="other"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError) as caught:  # no stream that a stranger could hold open
            next(stub.Watch(health.HealthCheckRequest()))
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        database = service.home.path / "service.sqlite"
        away = database.rename(database.with_suffix(".away"))
        service.home.engine.dispose()
        database.mkdir()
        service.look()
        assert stub.Check(health.HealthCheckRequest()).status == NOT_SERVING
        assert metrics_of(service)["arion_serving"] == 0
        service.home.engine.dispose()
        database.rmdir()
        away.rename(database)
        service.look()
        assert stub.Check(health.HealthCheckRequest()).status == SERVING
        assert metrics_of(service)["arion_serving"] == 1


def test_health_is_asked_from_the_command_line(service: RunningService) -> None:
    """As a container's health check does: exit code 0 while it serves, 1 once it does not."""
    home = with_settings(service.home, enrolment_port=service.ports.enrolment)
    assert state_of(home) is State.SERVING
    service.stop_serving()
    assert state_of(home, timeout_s=1.0) is State.DOWN
    result = CliRunner().invoke(app, ["coordinator", "health", str(service.home.path)])
    again = f"not serving: arion coordinator serve {service.home.path}\n"
    assert (result.exit_code, result.output) == (1, again)


def test_a_service_in_trouble_is_not_taken_for_one_that_is_down(service_home: ServiceHome) -> None:
    """Who then starts another would have two."""
    limits = Limits(reserve_bytes=1 << 62)
    running = RunningService(with_settings(service_home, limits=limits))
    home = with_settings(running.home, enrolment_port=running.ports.enrolment)
    try:
        assert state_of(home) is State.IN_TROUBLE
        assert "Free the disk" in state_words(home, State.IN_TROUBLE)
        calm = with_settings(home, limits=Limits())
        assert "its log says why" in state_words(calm, State.IN_TROUBLE)
    finally:
        running.stop()


def test_metrics_count_without_naming_anyone(service: RunningService, tmp_path: Path) -> None:
    link = enrol(service, tmp_path / "node", "st-mary-of-the-secrets")
    assert link.answer("0" * 32, "Done", b"", b"") is False
    service.home.mailbox.post("r", 1, "train.upload", ("UploadRequest", b"", b"payload"))
    service.home.registry.revoke("st-mary-of-the-secrets")
    with pytest.raises(LinkRefused):
        link.answer("0" * 32, "Done", b"", b"")
    link.close()
    found = metrics_of(service)
    assert found["arion_calls_total Answer ok"] == 1
    assert found["arion_calls_total Answer revoked"] == 1
    assert found["arion_calls_total Join ok"] == 1
    assert found["arion_call_seconds_count Answer"] == 2
    assert found["arion_members node revoked"] == 1
    assert found["arion_messages_waiting"] == 1
    assert found["arion_payload_bytes"] == len(b"payload")
    assert found["arion_disk_free_bytes"] > 0
    assert not [name for name in found if "mary" in name]


def test_metrics_are_on_the_loopback_address_alone(service: RunningService) -> None:
    """Another address of this machine refuses; 127.0.0.2 is one that every Linux has."""
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.2:{service.ports.metrics}/metrics", timeout=5)


@pytest.mark.parametrize(("role", "code"), [("operator", "OK"), ("node", "PERMISSION_DENIED")])
def test_reflection_is_for_operators(
    service: RunningService, tmp_path: Path, role: str, code: str
) -> None:
    credentials = joined_as(service, tmp_path / "member", "anna", role)
    with channel_of(service.ports.exchange, credentials) as channel:
        questions = iter([reflection.ServerReflectionRequest(list_services="")])
        answers = reflection_rpc.ServerReflectionStub(channel).ServerReflectionInfo(questions)
        if code == "OK":
            names = {found.name for found in next(answers).list_services_response.service}
            assert "arion.v1.Exchange" in names
        else:
            with pytest.raises(grpc.RpcError) as caught:
                next(answers)
            assert caught.value.code().name == code
            assert dict(caught.value.trailing_metadata())["arion-code"] == "wrong-role"


def test_reflection_is_off_unless_it_is_asked_for(service: RunningService, tmp_path: Path) -> None:
    assert type(service.home.settings)(federation="f", hosts=("h",)).reflection is False
    with channel_of(service.ports.enrolment, Credentials(service.home.authority.pem)) as channel:
        questions = iter([reflection.ServerReflectionRequest(list_services="")])
        answers = reflection_rpc.ServerReflectionStub(channel).ServerReflectionInfo(questions)
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@contextlib.contextmanager
def logged(formatter: logging.Formatter) -> Iterator[io.StringIO]:
    text, log = io.StringIO(), logging.getLogger("arion.service")
    handler = logging.StreamHandler(text)
    handler.setFormatter(formatter)
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        yield text
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def test_a_log_is_one_object_a_line(service: RunningService, tmp_path: Path) -> None:
    with logged(JsonLines()) as text:
        enrol(service, tmp_path / "node").close()
        forged = Link(
            f"localhost:{service.ports.enrolment}", Credentials(service.home.authority.pem)
        )
        with pytest.raises(LinkRefused):
            forged.join('x"\n{"forged": 1}', b"csr", b"key", b"signature")
        forged.close()
        logging.getLogger("arion.service").info("a\nb")
    found = [json.loads(line) for line in text.getvalue().splitlines()]
    assert [line["message"] for line in found] == [
        "north has joined and waits for approval",
        "Join was refused: bad-invitation",
        "a\nb",
    ]
    assert found[1]["method"] == "Join"
    assert found[1]["code"] == "bad-invitation"
    assert all(set(line) >= {"time", "level", "logger", "message"} for line in found)
    assert "forged" not in text.getvalue()


def test_a_fault_is_logged_without_what_it_holds(
    service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody expected: neither the caller nor the log is told its text."""

    def fails(*_: object) -> bool:
        raise RuntimeError("text of a patient\nsecond line")

    link = enrol(service, tmp_path / "node")
    monkeypatch.setattr(service.home.mailbox, "answer", fails)
    for formatter in (JsonLines(), TextLines()):
        with logged(formatter) as text, pytest.raises(LinkRefused) as caught:
            link.answer("0" * 32, "Done", b"", b"")
        assert caught.value.code == "internal"
        assert "patient" not in str(caught.value) + text.getvalue()
        (line,) = text.getvalue().splitlines()
        assert "RuntimeError" in line
        assert "test_operations.py" in line
    link.close()


def test_a_message_cannot_forge_a_line() -> None:
    record = logging.makeLogRecord({"name": "arion", "msg": "%s", "args": ("a\n2026 b\x1b[2J",)})
    line = TextLines().format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    assert line.endswith(r"arion a\n2026 b\x1b[2J")


def test_status_tells_what_waits_and_what_expires(service: RunningService, tmp_path: Path) -> None:
    enrol(service, tmp_path / "node").close()
    (member,) = service.home.registry.members()
    service.home.mailbox.post("r", member.address, "query.head", ("HeadQuery", b"", b"payload"))
    result = CliRunner().invoke(app, ["coordinator", "status", str(service.home.path), "--json"])
    found = json.loads(result.stdout)
    assert found["is_serving"] is False  # the settings name port 0, which nobody can dial
    assert (found["database"], found["payload_bytes"]) == ("sqlite", len(b"payload"))
    assert found["disk_free_bytes"] > 0
    assert found["authority_expires"] > "2030"
    (row,) = found["members"]
    assert (row["name"], row["messages_waiting"], row["answer_bytes"]) == ("north", 1, 0)
    assert row["certificate_expires"] > "2026"
    shown = CliRunner().invoke(app, ["coordinator", "status", str(service.home.path)])
    assert "not serving" in shown.stdout
    assert "north" in shown.stdout
