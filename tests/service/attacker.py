"""A member that attacks over real connections, and an honest one that is served meanwhile."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from client.membership import MembershipFile
from coordinator.service.home import ServiceHome
from coordinator.service.limits import Limits
from privacy.payloads import payload_digest
from protos.arion.v1 import service_pb2 as pb
from protos.arion.v1 import service_pb2_grpc as rpc
from tests.service.conftest import with_settings
from tests.service.members import channel_of, enrol
from tests.service.running import RunningService

PAYLOAD = bytes(range(256)) * 9_000


class Attacker:
    """A member that speaks the protocol by hand, and an honest one beside it."""

    def __init__(self, service: RunningService, folder: Path) -> None:
        self.service, self.folder = service, folder
        self.honest = enrol(service, folder / "honest", "honest")
        enrol(service, folder / "evil", "evil").close()
        self.credentials = MembershipFile(folder / "evil").load().credentials
        self.address = {member.name: member.address for member in service.home.registry.members()}
        self._channels: list[grpc.Channel] = []

    def stub(self) -> rpc.ExchangeStub:
        """A connection of its own."""
        self._channels.append(channel_of(self.service.ports.exchange, self.credentials))
        return rpc.ExchangeStub(self._channels[-1])

    def asked(self, name: str = "evil", payload: bytes = b"") -> str:
        """A message that waits for an answer."""
        parcel = ("UploadRequest", b"", payload)
        return self.service.home.mailbox.post("r", self.address[name], "train.upload", parcel)

    def honest_is_served(self) -> None:
        """The other member uploads, and is acknowledged."""
        assert self.honest.answer(self.asked("honest"), "Done", b"body", PAYLOAD)

    def parts(self) -> list[Path]:
        """Uploads that have begun."""
        return list((self.service.home.path / "blobs" / "parts").iterdir())

    def close(self) -> None:
        self.honest.close()
        for channel in self._channels:
            channel.close()


@pytest.fixture
def attack(service_home: ServiceHome, tmp_path: Path) -> Iterator[Callable[..., Attacker]]:
    """Start a service with some limits, and join both members."""
    made: list[tuple[RunningService, Attacker]] = []

    def start(**limits: Any) -> Attacker:
        running = RunningService(with_settings(service_home, limits=Limits(**limits)))
        made.append((running, Attacker(running, tmp_path)))
        return made[-1][1]

    yield start
    for running, attacker in made:
        attacker.close()
        running.stop()


def head(message: str, payload: bytes = PAYLOAD, **changes: Any) -> Any:
    digest = payload_digest(payload) if payload else b""
    values = {"message": message, "kind": "Done", "body": b"", "payload_digest": digest,
              "payload_bytes": len(payload), "offset": 0}  # fmt: skip
    return pb.AnswerPart(head=pb.AnswerHead(**{**values, **changes}))


def code_of(act: Callable[[], object]) -> str:
    """The fixed code that a call ends with, or gRPC's status where there is none."""
    with pytest.raises(grpc.RpcError) as caught:
        act()
    trailers = dict(caught.value.trailing_metadata() or ())
    return str(trailers.get("arion-code", caught.value.code().name))
