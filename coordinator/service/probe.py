"""Asks a running service for its health, from the machine that its home is on."""

from enum import StrEnum

import grpc
from grpc_health.v1 import health_pb2 as health
from grpc_health.v1 import health_pb2_grpc as health_rpc

from coordinator.service.home import ServiceHome

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104  (what is dialled instead)


class State(StrEnum):
    """How a service is."""

    SERVING = "serving"
    IN_TROUBLE = "in trouble"
    DOWN = "down"


def state_of(home: ServiceHome, timeout_s: float = 5.0) -> State:
    """Tell whether the home's service answers, and says that it does its work."""
    settings = home.settings
    address = f"{_ANYWHERE.get(settings.listen, settings.listen)}:{settings.enrolment_port}"
    credentials = grpc.ssl_channel_credentials(home.authority.pem)
    options = (("grpc.ssl_target_name_override", settings.hosts[0]), ("grpc.enable_http_proxy", 0))
    with grpc.secure_channel(address, credentials, options) as channel:
        try:
            found = health_rpc.HealthStub(channel).Check(
                health.HealthCheckRequest(), timeout=timeout_s
            )
        except grpc.RpcError:
            return State.DOWN
    is_serving = found.status == health.HealthCheckResponse.SERVING
    return State.SERVING if is_serving else State.IN_TROUBLE


def state_words(home: ServiceHome, state: State) -> str:
    """Say how a service is, and what to do where it does not serve."""
    free, reserve = home.mailbox.blobs.free_bytes(), home.settings.limits.reserve_bytes
    if state is State.SERVING:
        return "serving"
    if state is State.DOWN:
        return f"not serving: arion coordinator serve {home.path}"
    if free < reserve:
        return (
            f"not serving: it runs, and takes nothing before the disk has {reserve:,} free bytes; "
            f"it has {free:,}. Free the disk."
        )
    return "not serving: it runs, and its log says why it cannot work"
