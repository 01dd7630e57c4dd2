"""Members of a running service: how they join, connect, and are refused."""

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from client.membership import collect, join
from client.transport import Credentials, Link, LinkRefused
from tests.service.running import RunningService


def enrol(service: RunningService, home: Path, name: str = "north") -> Link:
    """Invite, join, approve and collect; return a link of the member."""
    invitation = service.home.registry.invite(name)
    join(home, "localhost", service.pair, str(invitation))
    service.home.registry.approve(name)
    membership = collect(home, 5)
    return Link(service.address, membership.credentials)


def refused(code: str, act: Callable[[], object]) -> None:
    with pytest.raises(LinkRefused) as caught:
        act()
    assert caught.value.code == code, caught.value


def channel_of(port: int, credentials: Credentials) -> grpc.Channel:
    own = (credentials.key, credentials.certificate) if credentials.certificate else ()
    tls = grpc.ssl_channel_credentials(credentials.authority, *own)
    return grpc.secure_channel(f"localhost:{port}", tls, (("grpc.use_local_subchannel_pool", 1),))
