"""Acts of a node: its ledger grows, it signs a survivor set, its certificate is renewed."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from client.membership import Membership, MembershipFile, renew
from coordinator.service.pki import Authority
from privacy.enrolment import key_pem, new_connection_key, signing_request
from privacy.identity import IdentityKey
from privacy.ledger.entries import RoundAborted
from privacy.ledger.head import verify_head
from privacy.ledger.log import LedgerLog
from privacy.secagg.memory import PlanKey, StoreConflict
from privacy.secagg.store import SqliteRoundStore
from tests.crash.actors import acknowledge

NAME = "north"
PLAN, OTHER = PlanKey("f", "run", 1, 1, 1), PlanKey("f", "run", 1, 2, 1)


def entry(number: int) -> RoundAborted:
    return RoundAborted(
        run="run", round=number + 1, attempt=1, plan_digest=f"{number:064x}", code="no-quorum"
    )


class AppendLedger:
    """Entries and heads: acknowledged ones are there once, in order, and heads still cover them."""

    def prepare(self, folder: Path, rests: Path) -> None:
        key = IdentityKey.generate()
        key.save(rests / "identity.key")
        with LedgerLog(folder, NAME) as ledger:
            ledger.append("round-aborted", entry(0))
            ledger.sign_head(key, datetime(2026, 1, 1, tzinfo=UTC))

    def act(self, folder: Path, rests: Path) -> None:
        key = IdentityKey.load(rests / "identity.key")
        with LedgerLog(folder, NAME) as ledger:
            for number in (1, 2, 3):
                ledger.append("round-aborted", entry(number))
                acknowledge(f"entry {number}")
                ledger.sign_head(key, datetime(2026, 1, 1 + number, tzinfo=UTC))
                acknowledge(f"head {number}")

    def check(self, folder: Path, rests: Path, acknowledged: Sequence[str]) -> None:
        key = IdentityKey.load(rests / "identity.key")
        said = [line.split()[0] for line in acknowledged]
        entries, heads = 1 + said.count("entry"), 1 + said.count("head")
        with LedgerLog(folder, NAME) as ledger:
            assert entries <= ledger.size <= entries + 1
            assert heads <= len(ledger.heads) <= heads + 1
            for number in range(ledger.size, 5):
                ledger.append("round-aborted", entry(number))
            ledger.sign_head(key)
        with LedgerLog(folder, NAME) as ledger:
            assert not ledger.notes
            assert [one.parsed() for one in ledger.entries] == [entry(at) for at in range(5)]
            assert verify_head(key.public_key, ledger.heads[-1]).size == 5


class SignSet:
    """A plan is claimed, a set signed, a reply given: none of it ever becomes another."""

    def prepare(self, folder: Path, rests: Path) -> None:
        folder.mkdir()
        SqliteRoundStore(folder / "rounds.sqlite").close()

    def act(self, folder: Path, rests: Path) -> None:
        store = SqliteRoundStore(folder / "rounds.sqlite")
        store.claim_plan(PLAN, b"plan")
        acknowledge("claimed")
        store.record_signed_set(b"plan", b"A")
        acknowledge("signed")
        store.record_unmask_reply(b"plan", b"reply")
        acknowledge("replied")
        store.claim_plan(OTHER, b"other")
        acknowledge("claimed-other")
        store.withdraw_claim(b"other")
        acknowledge("withdrawn")
        store.close()

    def check(self, folder: Path, rests: Path, acknowledged: Sequence[str]) -> None:
        store = SqliteRoundStore(folder / "rounds.sqlite")
        if "claimed" in acknowledged:
            assert store.is_claimed(b"plan")
            with pytest.raises(StoreConflict):
                store.claim_plan(PLAN, b"another plan")
        if "signed" in acknowledged:
            assert store.record_signed_set(b"plan", b"B") == b"A"
        if "replied" in acknowledged:
            assert store.record_unmask_reply(b"plan", b"another") == b"reply"
        if "withdrawn" in acknowledged:
            assert not store.is_claimed(b"other")
        elif "claimed-other" in acknowledged and store.is_claimed(b"other"):
            with pytest.raises(StoreConflict):
                store.claim_plan(OTHER, b"another plan")
        assert store.signed_set(b"plan") in (None, b"A", b"B")
        store.record_signed_set(b"plan", b"C")
        assert store.record_signed_set(b"plan", b"D") == store.signed_set(b"plan")
        store.close()


class RenewAtNode:
    """The membership holds the old pair of key and certificate, or the new one."""

    def prepare(self, folder: Path, rests: Path) -> None:
        folder.mkdir()
        IdentityKey.generate().save(folder / "identity.key")
        authority = Authority.create(rests, "hospitals")
        key = new_connection_key()
        request = signing_request(key, NAME)
        MembershipFile(folder).save(
            Membership(
                address="localhost:1",
                enrolment_address="localhost:2",
                name=NAME,
                authority=authority.pem.decode(),
                key=key_pem(key).decode(),
                request=request.decode(),
                certificate=self._signed(rests, request).decode(),
            )
        )

    def act(self, folder: Path, rests: Path) -> None:
        for number in (1, 2):
            renewed = renew(folder, self._link(rests))
            serial = x509.load_pem_x509_certificate(renewed.certificate.encode()).serial_number
            acknowledge(f"renewed {number} {serial}")

    def check(self, folder: Path, rests: Path, acknowledged: Sequence[str]) -> None:
        found = MembershipFile(folder).load()
        certificate = x509.load_pem_x509_certificate(found.certificate.encode())
        key: Any = load_pem_private_key(found.key.encode(), None)
        assert certificate.public_key() == key.public_key()
        assert found.due_in_s > 0
        serials = [int(line.split()[2]) for line in acknowledged]
        if len(serials) == 2:
            assert certificate.serial_number == serials[-1]
        renew(folder, self._link(rests))
        assert MembershipFile(folder).load().certificate != found.certificate

    @staticmethod
    def _signed(rests: Path, request: bytes) -> bytes:
        certificate = Authority.load(rests).issue_member(request, NAME, "node", "hospitals")
        return certificate.public_bytes(Encoding.PEM)

    def _link(self, rests: Path) -> Any:
        """What renews over the network in production; the network is not what crashes here."""
        return SimpleNamespace(renew=lambda request, signature: self._signed(rests, request))
