"""Asks a running service for its health, from the machine that its home is on."""

import grpc
from grpc_health.v1 import health_pb2 as health
from grpc_health.v1 import health_pb2_grpc as health_rpc

from coordinator.service.home import ServiceHome

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104  (what is dialled instead)


def is_serving(home: ServiceHome, timeout_s: float = 5.0) -> bool:
    """Tell whether the home's service answers and says that it is SERVING."""
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
            return False
    return bool(found.status == health.HealthCheckResponse.SERVING)
