"""What keeps a node from serving, found before a run does: each finding says what to do.

Nothing is changed and nothing is sent but a greeting and one call that asks for nothing. What is
said of data is a count, for whoever sits at the node.
"""

import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from urllib.parse import urlsplit

from client.config import CONSENT_FILE, IDENTITY_FILE, load_node_config
from client.histories import FORK_FILE, RESTORED_FILE
from client.home_checks import check_coordinator, check_identity, check_unit, weight_bytes
from client.home_memory import available_memory, training_bytes
from client.membership import MEMBERSHIP_FILE, Membership, MembershipFile
from client.proxy import link_to, proxy_of
from client.training_records import training_records
from client.transport import Credentials, LinkLost, LinkRefused
from models.device import Device
from models.folders import is_ours
from models.foreign.folder import check_foreign
from privacy.consent import load_consent
from privacy.enrolment import OLDEST_PROTOCOL, PROTOCOL
from privacy.identity import IdentityKey

RUNTIME = "arion-grpc"
_OK, _WARNING, _FAILURE = "ok", "warning", "failure"
_SKEW_WARNING_S, _SKEW_FAILURE_S = 30.0, 240.0  # certificates begin five minutes in the past
_LEAST_FREE, _LITTLE_FREE = 256 << 20, 2 << 30
_CONNECT_S = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what.
        level: "ok", "warning" or "failure".
        says: what was found, and what to do where it is not ok.

    """

    check: str
    level: str
    says: str


def examine(home: Path) -> list[Finding]:
    """Look at all that a node needs; what cannot be looked at is a failure of its own."""
    checks: dict[str, Callable[[Path], Finding]] = {
        "settings": _settings,
        "consent": _consent,
        "files": _files,
        "histories": _histories,
        "data": _data,
        "base model": _base_model,
        "memory": _memory,
        "disk": _disk,
        "certificate": _certificate,
        "reachability": _reachability,
        "clock and version": _clock,
        "membership": _membership,
    }
    found: list[Finding] = []
    for name, check in checks.items():
        looked = _looked(name, check, home)
        same = [each.check for each in found if each.says == looked.says]
        if same and looked.level == _FAILURE:  # one thing that several checks need
            looked = Finding(name, _FAILURE, f"not looked at: see {same[0]}")
        found.append(looked)
    return found


def _looked(name: str, check: Callable[[Path], Finding], home: Path) -> Finding:
    try:
        return check(home)
    except (ValueError, OSError) as error:
        return Finding(name, _FAILURE, " ".join(str(error).split()))


def _settings(home: Path) -> Finding:
    config = load_node_config(home)
    config.device.check()
    return Finding("settings", _OK, f"{config.name}, {config.device}, {config.precision}")


def _consent(home: Path) -> Finding:
    config, consent = load_node_config(home), load_consent(home / CONSENT_FILE)
    check_identity(config, consent, IdentityKey.load(home / IDENTITY_FILE))
    check_unit(config, consent)
    consent.check_not_expired(date.today())
    if RUNTIME not in consent.runtimes:
        return Finding(
            "consent",
            _FAILURE,
            f"Expected {RUNTIME!r} in the clause runtimes, got {', '.join(consent.runtimes)}. Have "
            "a consent signed off that allows it.",
        )
    if (home / MEMBERSHIP_FILE).exists():
        check_coordinator(consent, MembershipFile(home).load().coordinator_key)
    return Finding("consent", _OK, f"until {consent.expires}, epsilon {consent.epsilon:g}")


def _files(home: Path) -> Finding:
    for name in (IDENTITY_FILE, MEMBERSHIP_FILE):
        path = home / name
        if path.exists() and path.stat().st_mode & 0o077:
            return Finding(
                "files",
                _FAILURE,
                f"Expected {path} to be readable by its owner alone, got mode "
                f"{path.stat().st_mode & 0o777:o}. Run chmod 600 {path}, and ask who read it.",
            )
    if not os.access(home, os.W_OK):
        return Finding(
            "files", _FAILURE, f"Expected a writable home, got {home}. Change its owner."
        )
    return Finding("files", _OK, "keys are readable by their owner alone")


def _histories(home: Path) -> Finding:
    for name in (FORK_FILE, RESTORED_FILE):
        if (home / name).exists():
            return Finding(
                "histories",
                _FAILURE,
                f"Expected one history, got the file {name} in {home}: the node releases nothing. "
                "An officer must settle it, then remove that file.",
            )
    return Finding("histories", _OK, "no fork, no restored ledger")


def _data(home: Path) -> Finding:
    return Finding(
        "data", _OK, f"{len(training_records(load_node_config(home)))} records to train on"
    )


def _base_model(home: Path) -> Finding:
    config = load_node_config(home)
    size = weight_bytes(config)
    if not is_ours(config.base_model):
        check_foreign(config.base_model)
    return Finding("base model", _OK, f"{size:,} bytes of weights")


def _memory(home: Path) -> Finding:
    config = load_node_config(home)
    adapters, whole = training_bytes(config)
    free, words = available_memory(), f"up to about {adapters / 1e9:.1f} GB"
    if whole is not None:
        words = f"about {adapters / 1e9:.1f} GB with adapters, {whole / 1e9:.1f} GB in full"
    if config.device is Device.CUDA:
        words += ", beside the GPU's own"
    if free < (whole or adapters):
        return Finding(
            "memory",
            _WARNING,
            f"Expected enough free memory for training, which takes {words}, got "
            f"{free / 1e9:.1f} GB. Stop other programs, or train with adapters (LoRA) and fewer "
            "chunk_sequences.",
        )
    return Finding("memory", _OK, f"{free / 1e9:.1f} GB are free; training takes {words}")


def _disk(home: Path) -> Finding:
    free = shutil.disk_usage(home).free
    if free < _LITTLE_FREE:
        level = _FAILURE if free < _LEAST_FREE else _WARNING
        return Finding(
            "disk",
            level,
            f"Expected {_LITTLE_FREE:,} free bytes for ledger, outbox and models, got {free:,}. "
            "Free the disk: a full one stops the node in the middle of a round.",
        )
    return Finding("disk", _OK, f"{free:,} bytes are free")


def _certificate(home: Path) -> Finding:
    membership = MembershipFile(home).load()
    due = membership.due_in_s
    when = "renewed at the next start" if due < 0 else f"renewed in {due / 3600:.1f} h"
    return Finding("certificate", _OK, f"{membership.name} in {membership.federation!r}, {when}")


def _reachability(home: Path) -> Finding:
    """That something listens, or that the proxy does: what TLS and the service say comes after."""
    for address in _addresses(MembershipFile(home).load()):
        host, _, port = address.rpartition(":")
        proxy = proxy_of(home, host, os.environ)
        if proxy:
            parts = urlsplit(proxy)
            host, port = str(parts.hostname), str(parts.port)
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
        except OSError as error:
            what = "the proxy" if proxy else "the coordinator"
            return Finding(
                "reachability",
                _FAILURE,
                f"Expected {what} at {host}:{port} to accept a connection, got: {error}. Check the "
                "name, the firewall for outgoing TCP to that port, and that it runs.",
            )
    return Finding(
        "reachability", _OK, "both ports accept connections" if not proxy else "by proxy"
    )


def _clock(home: Path) -> Finding:
    membership = MembershipFile(home).load()
    credentials = Credentials(membership.authority.encode())
    link = link_to(home, membership.enrolment_address, credentials)
    before = time.time()
    try:
        hello = link.hello()
    except LinkRefused as refusal:
        says = _OLD if refusal.code == "unknown-call" else f"{refusal} ({refusal.code})"
        return Finding("clock and version", _FAILURE, says)
    except LinkLost as error:
        hint = _CLOCK if _OF_TIME.search(str(error)) else _TLS
        return Finding("clock and version", _FAILURE, f"{error}. {hint}")
    finally:
        link.close()
    if hello.oldest > PROTOCOL or hello.newest < OLDEST_PROTOCOL:
        return Finding(
            "clock and version",
            _FAILURE,
            f"Expected a coordinator that speaks version {OLDEST_PROTOCOL} to {PROTOCOL}, got "
            f"{hello.oldest} to {hello.newest}. Install a version of Arion that speaks its.",
        )
    return _skew(hello.time - (before + time.time()) / 2)


def _skew(skew_s: float) -> Finding:
    if abs(skew_s) < _SKEW_WARNING_S:
        return Finding("clock and version", _OK, f"clocks agree within {abs(skew_s):.1f} s")
    level = _FAILURE if abs(skew_s) >= _SKEW_FAILURE_S else _WARNING
    side = "behind" if skew_s > 0 else "ahead of"
    return Finding(
        "clock and version",
        level,
        f"Expected clocks that agree, got this one {abs(skew_s):.0f} s {side} the coordinator's at "
        f"{datetime.now(UTC):%H:%M:%S} UTC. Set up NTP: certificates are refused beyond 5 minutes.",
    )


def _membership(home: Path) -> Finding:
    membership = MembershipFile(home).load()
    _ = membership.due_in_s  # raises where there is no certificate to show
    link = link_to(home, membership.address, membership.credentials)
    try:
        link.is_member()
    except LinkRefused as refusal:
        return Finding("membership", _FAILURE, f"{refusal} ({refusal.code})")
    except LinkLost as error:
        return Finding("membership", _FAILURE, f"{error}. {_TLS}")
    finally:
        link.close()
    return Finding("membership", _OK, "the coordinator knows this node as an active member")


_OLD = (
    f"Expected a coordinator that speaks version {OLDEST_PROTOCOL} to {PROTOCOL}, got version 1. "
    "Have its operator upgrade it."
)
_OF_TIME = re.compile("not yet valid|expired", re.IGNORECASE)
_CLOCK = (
    "Check this machine's clock, and the coordinator's: certificates are refused beyond 5 minutes. "
    "Set up NTP."
)
_TLS = (
    "Check that nothing on the way breaks TLS open, that the host is one of the coordinator's "
    "names, and that it serves."
)


def _addresses(membership: Membership) -> tuple[str, str]:
    return membership.address, membership.enrolment_address
