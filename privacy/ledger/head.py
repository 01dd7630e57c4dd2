"""Signed tree heads, and the witness that lets no ledger show two histories."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from privacy.canonical import canonical_bytes, parse_canonical
from privacy.identity import IdentityKey, Signed, verify_signed
from privacy.ledger.entries import Digest, ForkError, LedgerError, Name, Positive
from privacy.ledger.files import replace_durably
from privacy.ledger.merkle import ProofError, verify_consistency

HEAD_DOMAIN = "ledger-head"
COUNTERSIGN_DOMAIN = "ledger-countersign"

Time = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]


class TreeHead(BaseModel):
    """What a ledger signs: all of its first `size` entries, in 32 bytes.

    Attributes:
        ledger: name of the institution (or coordinator) whose ledger it is.
        size: number of entries under the root; an empty ledger has no head.
        root: Merkle root (RFC 6962), hex.
        time: when it was signed, UTC, RFC 3339 in whole seconds; nothing is decided on it.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    ledger: Name
    size: Positive
    root: Digest
    time: Time

    def payload(self) -> bytes:
        """Return the canonical bytes that are signed."""
        return canonical_bytes(self.model_dump(mode="json"))


class Countersignature(BaseModel):
    """What a witness signs: it holds this head, and none that contradicts it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    ledger: Name
    size: Positive
    root: Digest
    witness: Name

    def payload(self) -> bytes:
        """Return the canonical bytes that are signed."""
        return canonical_bytes(self.model_dump(mode="json"))


_Statement = TypeVar("_Statement", TreeHead, Countersignature)


def sign_head(key: IdentityKey, head: TreeHead) -> Signed:
    """Sign a head with the ledger owner's identity key."""
    return key.sign(HEAD_DOMAIN, head.payload())


def verify_head(public_key: bytes, signed: Signed) -> TreeHead:
    """Return the head after checking its signature, or raise ValueError (SignatureError)."""
    return parse_statement(verify_signed(public_key, HEAD_DOMAIN, signed), TreeHead)


def verify_countersignature(public_key: bytes, signed: Signed) -> Countersignature:
    """Return the countersignature after checking it, or raise ValueError (SignatureError)."""
    payload = verify_signed(public_key, COUNTERSIGN_DOMAIN, signed)
    return parse_statement(payload, Countersignature)


def parse_statement(payload: bytes, kind: type[_Statement]) -> _Statement:
    """Read a head or countersignature from its canonical bytes, without checking a signature.

    Raises:
        ValueError: not canonical, or not the fields of `kind`.

    """
    try:
        return kind.model_validate(parse_canonical(payload))
    except ValidationError as error:
        fields = ", ".join(kind.model_fields)
        raise LedgerError(f"Expected the fields {fields}, well formed, got others.") from error


def signed_line(signed: Signed) -> bytes:
    """Write a signed statement as one line of canonical JSON."""
    payload = parse_canonical(signed.payload)
    return canonical_bytes({"payload": payload, "signature": signed.signature.hex()})


def parse_signed_line(line: bytes) -> Signed:
    """Read a line of `signed_line`; raises ValueError if it is not one."""
    value = parse_canonical(line)
    if not isinstance(value, dict) or set(value) != {"payload", "signature"}:
        raise LedgerError("Expected a line {payload, signature}, got other fields.")
    signature = value["signature"]
    if not isinstance(signature, str) or signature != signature.lower():
        raise LedgerError("Expected a signature in lower-case hex, got another value.")
    return Signed(canonical_bytes(value["payload"]), bytes.fromhex(signature))


def utc_seconds(moment: datetime | None = None) -> str:
    """Return a moment (now by default) as UTC in RFC 3339, whole seconds."""
    return (moment or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class HeadWitness:
    """The last head that this institution accepted of another's ledger, kept on disk.

    Formal guarantee: as long as the file is not rolled back, every head that `accept` let pass is
    an extension of all those before it, under SHA-256's collision resistance.

    Args:
        path: file that holds the head, named `*.witness.json` so that `verify_tree` finds it; its
            folder must exist.
        ledger: name of the ledger that is watched.
        witness: name of the institution that watches.

    """

    def __init__(self, path: Path, ledger: str, witness: str) -> None:
        self._path, self._ledger, self._witness = path, ledger, witness
        self._held: TreeHead | None = None
        self._signed: Signed | None = None
        if path.exists():
            self._signed = parse_signed_line(path.read_bytes().removesuffix(b"\n"))
            self._held = parse_statement(self._signed.payload, TreeHead)

    @property
    def held(self) -> TreeHead | None:
        """The last head accepted, or None before the first."""
        return self._held

    @property
    def held_signed(self) -> Signed | None:
        """The same, as its owner signed it: what shows the owner that it signed more."""
        return self._signed

    def accept(
        self, signed_head: Signed, consistency_proof: Sequence[bytes], public_key: bytes
    ) -> bytes:
        """Check a new head against the one held, keep it, and return what to countersign.

        1. the ledger's pinned key signed it; 2. it is of the watched ledger; 3. it is no shorter
        than the head held; 4. it begins with the head held, as it does where it is the same history
        of the same length, whatever proof comes with it: an offer that was accepted comes again
        where the answer was lost; 5. it is on disk before we return.

        Args:
            signed_head: the head offered, domain "ledger-head".
            consistency_proof: RFC 6962 proof from the held size; not read at first or where equal.
            public_key: pinned Ed25519 key of the ledger's owner, 32 bytes.

        Returns:
            Payload to sign in the domain "ledger-countersign".

        Raises:
            SignatureError: another key signed the head.
            ForkError: a rollback, another history, or another ledger's head. Stop training.

        """
        head = verify_head(public_key, signed_head)  # 1
        if head.ledger != self._ledger:  # 2
            raise ForkError(
                f"Expected a head of the ledger {self._ledger!r}, got one of {head.ledger!r}. "
                "Do not train on; compare the pinned keys with the coordinator's operator."
            )
        if self._held is not None:
            _check_extends(self._held, head, consistency_proof)  # 3, 4
        if head != self._held:
            replace_durably(self._path, signed_line(signed_head) + b"\n")  # 5
            self._held, self._signed = head, signed_head
        return Countersignature(
            ledger=head.ledger, size=head.size, root=head.root, witness=self._witness
        ).payload()


def _check_extends(held: TreeHead, head: TreeHead, proof: Sequence[bytes]) -> None:
    if (head.size, head.root) == (held.size, held.root):
        return
    if head.size < held.size:
        raise ForkError(
            f"Expected the ledger {head.ledger!r} to keep its {held.size} entries, got a head of "
            f"{head.size}: it was rolled back. Do not train on; ask its owner for the newest state."
        )
    try:
        roots = bytes.fromhex(held.root), bytes.fromhex(head.root)
        verify_consistency(held.size, head.size, proof, *roots)
    except ProofError as error:
        raise ForkError(
            f"Expected the ledger {head.ledger!r} of {head.size} entries to extend the {held.size} "
            "that were accepted, got another history: it forked. Do not train on; keep both heads "
            "as evidence."
        ) from error
