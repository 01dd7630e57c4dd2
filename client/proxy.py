"""Through which HTTP CONNECT proxy a node dials, and connections that do.

TLS runs from the node to the coordinator through the proxy's tunnel: the proxy sees who talks to
whom and how much, and nothing else.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from client.config import NODE_FILE, NodeError
from client.transport import Credentials, Link


def link_to(home: Path, address: str, credentials: Credentials) -> Link:
    """Dial an address as the node's home says; NodeError as `proxy_of`."""
    return Link(address, credentials, proxy_of(home, address.rpartition(":")[0], os.environ))


def proxy_of(home: Path, host: str, environment: Mapping[str, str]) -> str | None:
    """Return the proxy's URL, or None to dial directly.

    Args:
        home: of the node; `proxy` in its node.toml comes first, and "" there is none.
        host: that is dialled; NO_PROXY is a list of hosts and domains that need no proxy.
        environment: HTTPS_PROXY and NO_PROXY, in capitals or not.

    Raises:
        NodeError: not an http:// URL; the message never holds it, as it may hold a password.

    """
    own = _of_node(home)
    url = _read(environment, "HTTPS_PROXY") if own is None else own
    if not url or (own is None and _is_exempt(host, _read(environment, "NO_PROXY"))):
        return None
    return check_proxy(url)


def check_proxy(url: str) -> str:
    """Return a proxy's URL; raises as `proxy_of`."""
    try:
        parts = urlsplit(url)
        whole = (
            parts.scheme == "http" and parts.hostname and parts.port and not parts.path.strip("/")
        )
    except ValueError:
        whole = None
    if not whole:
        raise NodeError(
            "Expected a proxy like http://proxy.example.org:3128, got another URL. Correct `proxy` "
            f"in {NODE_FILE}, or HTTPS_PROXY. (The connection through it is TLS all the same.)"
        )
    return url


def _of_node(home: Path) -> str | None:
    """`proxy` of node.toml, which need not be there yet; its other keys are read elsewhere."""
    try:
        found = tomllib.loads((home / NODE_FILE).read_text(encoding="utf-8-sig")).get("proxy")
    except (OSError, ValueError):
        return None
    return None if found is None else str(found)


def _read(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name) or environment.get(name.lower()) or ""


def _is_exempt(host: str, listed: str) -> bool:
    names = [name.strip().lstrip(".").lower() for name in listed.split(",")]
    host = host.strip("[]").lower()
    return any(name and (name in ("*", host) or host.endswith("." + name)) for name in names)
