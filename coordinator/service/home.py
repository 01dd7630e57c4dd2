"""A coordinator's home: its authority, its signing key, its database and its settings."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from sqlalchemy import Engine

from coordinator.errors import RunError
from coordinator.service import schema
from coordinator.service.blobs import Blobs
from coordinator.service.database import check_database_url, open_database
from coordinator.service.doors import Doors
from coordinator.service.limits import Limits
from coordinator.service.mailbox import Mailbox
from coordinator.service.pki import Authority, Role
from coordinator.service.registry import Registry
from coordinator.service.stores import ObjectStore
from models.faults import first_fault
from privacy.enrolment import key_pem, new_connection_key
from privacy.identity import IdentityKey
from privacy.ledger.files import make_directory, replace_durably

SERVICE_FILE = "service.json"
IDENTITY_FILE = "identity.key"
BLOBS_FOLDER = "blobs"
_HOST = re.compile(r"(\*\.)?\w([\w.-]*\w)?|[0-9A-Fa-f:.]+", re.ASCII)


class ServiceSettings(BaseModel):
    """What the service is and where it listens.

    Attributes:
        federation: identifier; in every plan and certificate.
        hosts: names and addresses that nodes dial; the server certificate is for them.
        listen: address of the interface, such as 0.0.0.0.
        port: of the exchange, under mutual TLS.
        enrolment_port: of joining, under server TLS.
        database: URL of another database than the home's SQLite file.
        payloads: URL of an object store that payloads lie in, instead of the home's folder.
        metrics_port: of Prometheus metrics on the loopback address; None serves none.
        reflection: answer gRPC reflection of operators on the exchange's port.
        limits: what a member may use.
        approvals: operators that must approve a member.
        artefact_roles: who may have the weights of artefacts in the home's registry.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    federation: str = Field(min_length=1, max_length=200)
    hosts: tuple[str, ...] = Field(min_length=1)
    listen: str = "127.0.0.1"
    port: int = Field(default=7443, ge=0, lt=65536)
    enrolment_port: int = Field(default=7444, ge=0, lt=65536)
    database: str | None = Field(default=None, repr=False)
    payloads: str | None = Field(default=None, repr=False)
    metrics_port: int | None = Field(default=None, ge=0, lt=65536)
    reflection: bool = False
    limits: Limits = Limits()
    approvals: Literal[1, 2] = 1
    artefact_roles: tuple[Role, ...] = ("node", "operator")

    @field_validator("hosts")
    @classmethod
    def _dialled(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise ValueError(f"expected a name or an address that can be dialled, got {host!r}")
        return hosts

    @model_validator(mode="after")
    def _ports_differ(self) -> "ServiceSettings":
        ports = [port for port in (self.port, self.enrolment_port, self.metrics_port) if port]
        if len(set(ports)) < len(ports):
            raise ValueError(f"expected a port for each of its doors, got {ports}")
        return self

    @field_validator("database")
    @classmethod
    def _known(cls, url: str | None) -> str | None:
        return None if url is None else check_database_url(url)


@dataclass(frozen=True)
class ServiceHome:
    """An opened home.

    Attributes:
        path: the folder.
        settings: of the service.
        authority: signs certificates.
        key: signs plans.
        engine: the database.
        registry: who may connect.
        mailbox: what waits.

    """

    path: Path
    settings: ServiceSettings
    authority: Authority
    key: IdentityKey
    engine: Engine
    registry: Registry
    mailbox: Mailbox

    @classmethod
    def create(
        cls,
        path: Path,
        settings: ServiceSettings,
        before: Callable[[], object] = lambda: None,
    ) -> "ServiceHome":
        """Make a home; nothing that exists is overwritten.

        Args:
            path: the folder.
            settings: of the service.
            before: what else belongs in it; called before it counts as made.

        Raises:
            RunError: there is one already.

        """
        if (path / SERVICE_FILE).exists():
            raise RunError(
                f"Expected a folder without a coordinator, got one in {path}. Choose another, or "
                "use the one that is there."
            )
        _open_store(path, settings)
        make_directory(path)
        if not (path / IDENTITY_FILE).exists():
            IdentityKey.generate().save(path / IDENTITY_FILE)
        Authority.create(path, settings.federation)
        engine = open_database(path, settings.database)
        schema.migrate(engine)
        engine.dispose()
        before()
        text = settings.model_dump_json(indent=2).encode() + b"\n"
        replace_durably(path / SERVICE_FILE, text)  # last: its presence says that all is there
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> "ServiceHome":
        """Open a home.

        Raises:
            RunError: there is none, its settings are damaged, or its database has another schema.

        """
        settings = load_service_settings(path)
        authority = Authority.load(path)
        engine = open_database(path, settings.database)
        schema.verify(engine)
        return cls(
            path,
            settings,
            authority,
            IdentityKey.load(path / IDENTITY_FILE),
            engine,
            Registry(engine, authority, settings.federation, settings.approvals),
            Mailbox(engine, open_blobs(path, settings), Doors(path)),
        )

    def new_server_pair(self) -> tuple[bytes, bytes]:
        """Make a key and a certificate for the service's ports; return (key, chain), PEM."""
        key = new_connection_key()
        certificate = self.authority.issue_server(key, self.settings.hosts)
        chain = certificate.public_bytes(Encoding.PEM) + self.authority.pem
        return key_pem(key), chain

    def close(self) -> None:
        """Give the database back."""
        self.mailbox.doors.close()
        self.engine.dispose()


def open_blobs(path: Path, settings: ServiceSettings) -> Blobs:
    """Open the payloads of a home.

    Raises:
        RunError: the settings name a store that cannot be reached from here.

    """
    return Blobs(path / BLOBS_FOLDER, _open_store(path, settings))


def _open_store(path: Path, settings: ServiceSettings) -> ObjectStore | None:
    try:
        return None if settings.payloads is None else ObjectStore(settings.payloads)
    except ValueError as error:
        raise RunError(f"{path / SERVICE_FILE}: payloads: {error}") from None


def make_settings(**options: object) -> ServiceSettings:
    """Return a new home's settings.

    Raises:
        RunError: an option out of its range; the message never holds a URL.

    """
    try:
        return ServiceSettings.model_validate(options)
    except ValidationError as error:
        fault = first_fault(error, "service", ServiceSettings)
        raise RunError(f"the options: {fault}. Correct this option.") from None


def load_service_settings(home: Path) -> ServiceSettings:
    """Read a home's settings.

    Raises:
        RunError: there is no home, or its settings are damaged.

    """
    try:
        return ServiceSettings.model_validate_json((home / SERVICE_FILE).read_bytes())
    except OSError as error:
        raise RunError(
            f"Expected a coordinator's home at {home}, got {type(error).__name__}. Make one: "
            "arion coordinator init."
        ) from error
    except ValidationError as error:
        fault = first_fault(error, "service", ServiceSettings)
        text = f"{home / SERVICE_FILE}: {fault}. Correct it."
        raise RunError(text) from None  # its context may hold a password
