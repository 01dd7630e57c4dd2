"""Acts of the coordinator's service: its home, enrolment, uploads, certificates, migration."""

import contextlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from sqlalchemy import func, select

from coordinator.errors import RunError
from coordinator.service import blobs, schema
from coordinator.service.database import (
    INVITATIONS,
    MESSAGES,
    REPLIES,
    open_database,
    transaction,
)
from coordinator.service.home import ServiceHome, ServiceSettings
from coordinator.service.pki import Peer, read_peer
from coordinator.service.posts import Post
from coordinator.service.registry import Member, RegistryError
from privacy.enrolment import (
    Invitation,
    join_payload,
    key_pem,
    new_connection_key,
    renew_payload,
    signing_request,
)
from privacy.identity import IdentityKey
from privacy.payloads import payload_digest
from tests.crash.actors import acknowledge

NAME, RUN = "north", "first"
SETTINGS = ServiceSettings(federation="hospitals", hosts=("localhost",))
PAYLOAD = bytes(range(251)) * 40
CHUNK = 5_000  # a block of a disk, and a rest
DATABASE = "database"


def database_of(rests: Path) -> str | None:
    """URL of the database that a test wants, or None for SQLite in the home."""
    path = rests / DATABASE
    return path.read_text() if path.exists() else None


def settings_of(rests: Path) -> ServiceSettings:
    return SETTINGS.model_copy(update={"database": database_of(rests)})


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[ServiceHome]:
    home = ServiceHome.open(folder)
    try:
        yield home
    finally:
        home.close()


class Initialise:
    """A coordinator's home is made: by the same command again, if that is what it takes."""

    def prepare(self, folder: Path, rests: Path) -> None:
        folder.mkdir()

    def act(self, folder: Path, rests: Path) -> None:
        ServiceHome.create(folder, settings_of(rests)).close()
        acknowledge("made")

    def check(self, folder: Path, rests: Path, acknowledged: Sequence[str]) -> None:
        try:
            ServiceHome.open(folder).close()
        except (RunError, ValueError):
            assert not acknowledged
            ServiceHome.create(folder, settings_of(rests)).close()
        with opened(folder) as home:
            joined(home, Asking.new(home.registry.invite(NAME)))
            assert home.registry.approve(NAME).status == "active"


class Asking:
    """An institution with its keys, asking to join."""

    def __init__(self, token: str, csr: bytes, identity: IdentityKey) -> None:
        self.token, self.csr, self.identity = token, csr, identity

    @classmethod
    def new(cls, invitation: Invitation) -> "Asking":
        csr = signing_request(new_connection_key(), NAME)
        return cls(str(invitation), csr, IdentityKey.generate())


def joined(home: ServiceHome, asking: Asking) -> str:
    invitation = Invitation.parse(asking.token)
    signed = asking.identity.sign("join", join_payload(invitation.digest, asking.csr))
    return home.registry.join(
        invitation.secret, asking.csr, asking.identity.public_key, signed.signature
    )


class Enrol:
    """Invited, joined, approved, revoked: each once, and not undone."""

    def prepare(self, folder: Path, rests: Path) -> None:
        ServiceHome.create(folder, settings_of(rests)).close()
        IdentityKey.generate().save(rests / "identity.key")
        (rests / "request.pem").write_bytes(signing_request(new_connection_key(), NAME))

    def act(self, folder: Path, rests: Path) -> None:
        with opened(folder) as home:
            token = str(home.registry.invite(NAME))
            acknowledge(f"invited {token}")
            joined(home, self._asking(token, rests))
            acknowledge("joined")
            home.registry.approve(NAME)
            acknowledge("approved")
            home.registry.revoke(NAME)
            acknowledge("revoked")

    def check(self, folder: Path, rests: Path, acknowledged: Sequence[str]) -> None:
        said = {line.split()[0]: line.partition(" ")[2] for line in acknowledged}
        with opened(folder) as home:
            registry = home.registry
            asking = self._asking(said.get("invited") or str(registry.invite(NAME)), rests)
            before = registry.members()
            assert len(before) <= 1
            status = before[0].status if before else "none"
            allowed = ["none", "pending", "active", "revoked"]
            done = sum(word in said for word in ("joined", "approved", "revoked"))
            assert status in allowed[done : done + 2], (status, said)
            if status == "none":
                assert joined(home, asking) == NAME
            if status == "pending":
                assert joined(home, asking) == NAME  # the same request, not answered before
            if status in ("none", "pending"):
                registry.approve(NAME)
            (member,) = registry.members()
            assert member.identity_key == asking.identity.public_key
            assert (member.status == "revoked") == (status == "revoked")
            if status != "revoked":
                assert registry.check(peer_of(member)).name == NAME
            with pytest.raises(RegistryError, match="was not used"):
                joined(home, Asking.new(Invitation.parse(asking.token)))

    @staticmethod
    def _asking(token: str, rests: Path) -> Asking:
        identity = IdentityKey.load(rests / "identity.key")
        return Asking(token, (rests / "request.pem").read_bytes(), identity)


def enrolled(home: ServiceHome, identity: IdentityKey | None = None) -> Member:
    asking = Asking.new(home.registry.invite(NAME))
    asking.identity = identity or asking.identity
    joined(home, asking)
    return home.registry.approve(NAME)


def peer_of(member: Member) -> Peer:
    return peer_in(member.certificate)


def peer_in(certificate: bytes) -> Peer:
    return read_peer(certificate, SETTINGS.federation, datetime.now(UTC))


class AcceptUpload:
    """An answer's payload: what was flushed is not sent again, what was acknowledged is there."""

    def prepare(self, folder: Path, rests: Path) -> None:
        with contextlib.closing(ServiceHome.create(folder, settings_of(rests))) as home:
            enrolled(home)
            message = home.mailbox.post(RUN, 1, "train.upload", ("UploadRequest", b"?", b"model"))
            (rests / "message").write_text(message)

    def act(self, folder: Path, rests: Path) -> None:
        blobs.LARGE_BYTES = 0  # chunks pass the cache
        with opened(folder) as home:
            answer = self._answer(rests)
            for start in range(0, len(PAYLOAD), CHUNK):
                self._send(home, answer.message, start, start + CHUNK)
                acknowledge(f"flushed {min(start + CHUNK, len(PAYLOAD))}")
            assert home.mailbox.answer(answer)
            acknowledge("answered")
            home.mailbox.clear(RUN)
            acknowledge("cleared")

    def check(self, folder: Path, rests: Path, acknowledged: Sequence[str]) -> None:
        answer = self._answer(rests)
        flushed = [int(line.split()[1]) for line in acknowledged if line.startswith("flushed")]
        with opened(folder) as home:
            mailbox = home.mailbox
            kept = mailbox.first_answer([answer.message])
            if "cleared" in acknowledged:
                assert kept is None
                assert not mailbox.waiting(1)
                return
            if kept is None and not mailbox.is_waiting(answer.message, 1):
                assert "answered" in acknowledged  # `clear` was done, and not acknowledged
                return
            if kept is None:
                assert "answered" not in acknowledged
                offset = mailbox.blobs.progress(answer.message)
                if not mailbox.blobs.size(answer.payload_digest):
                    assert offset >= max(flushed, default=0)
                    self._send(home, answer.message, offset, len(PAYLOAD))
                assert mailbox.answer(answer)
            assert not mailbox.answer(answer)
            kept = mailbox.first_answer([answer.message])
            assert kept is not None
            assert kept[1] == PAYLOAD
            with transaction(home.engine) as connection:
                for table in (MESSAGES, REPLIES):
                    count = connection.execute(select(func.count()).select_from(table)).scalar()
                    assert count == 1
            mailbox.clear(RUN)
            assert not [path for path in (folder / "blobs").rglob("*") if path.is_file()]

    @staticmethod
    def _answer(rests: Path) -> Post:
        message = (rests / "message").read_text()
        digest = payload_digest(PAYLOAD)
        return Post(message, 1, "", "Upload", b"body", digest, len(PAYLOAD))

    @staticmethod
    def _send(home: ServiceHome, message: str, start: int, end: int) -> None:
        incoming = home.mailbox.blobs.receive(message, start, len(PAYLOAD))
        incoming.write(PAYLOAD[start:end])
        incoming.close()


class RenewAtService:
    """A certificate is renewed: the member can connect with the old one or the new one."""

    def prepare(self, folder: Path, rests: Path) -> None:
        identity = IdentityKey.generate()
        identity.save(rests / "identity.key")
        with contextlib.closing(ServiceHome.create(folder, settings_of(rests))) as home:
            (rests / "first.pem").write_bytes(enrolled(home, identity).certificate)

    def act(self, folder: Path, rests: Path) -> None:
        with opened(folder) as home:
            first = peer_in((rests / "first.pem").read_bytes())
            csr = signing_request(new_connection_key(), NAME)
            second = home.registry.renew(first, csr, self._signature(csr, rests))
            acknowledge(f"renewed {second.hex()}")

    def check(self, folder: Path, rests: Path, acknowledged: Sequence[str]) -> None:
        first = (rests / "first.pem").read_bytes()
        with opened(folder) as home:
            (member,) = home.registry.members()
            renewed = [bytes.fromhex(line.split()[1]) for line in acknowledged]
            assert member.certificate in renewed if renewed else member.certificate
            for certificate in (first, *renewed):
                assert home.registry.check(peer_in(certificate)).status == "active"
            key = new_connection_key()
            csr = signing_request(key, NAME)
            again = home.registry.renew(peer_of(member), csr, self._signature(csr, rests))
            assert x509.load_pem_x509_certificate(again).public_key() == key.public_key()
            assert load_pem_private_key(key_pem(key), None)

    @staticmethod
    def _signature(csr: bytes, rests: Path) -> bytes:
        identity = IdentityKey.load(rests / "identity.key")
        return identity.sign("renew", renew_payload(csr)).signature


class Migrate:
    """A database gets our schema, whole or not at all; again it changes nothing."""

    def prepare(self, folder: Path, rests: Path) -> None:
        folder.mkdir()

    def act(self, folder: Path, rests: Path) -> None:
        engine = open_database(folder, database_of(rests))
        assert schema.migrate(engine)
        acknowledge("migrated")
        engine.dispose()

    def check(self, folder: Path, rests: Path, acknowledged: Sequence[str]) -> None:
        engine = open_database(folder, database_of(rests))
        if acknowledged:
            schema.verify(engine)
        with transaction(engine) as connection:
            assert schema.found(connection) in (None, schema.newest())
        schema.migrate(engine)
        schema.verify(engine)
        with transaction(engine) as connection:
            assert connection.execute(INVITATIONS.select()).all() == []
        engine.dispose()
