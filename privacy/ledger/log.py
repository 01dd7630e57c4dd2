"""The append-only log of one institution: entries, signed heads, countersignatures."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from privacy.canonical import JsonLike
from privacy.identity import IdentityKey, Signed
from privacy.ledger.entries import Body, Entry, LedgerError, RestoredError, make_entry, parse_entry
from privacy.ledger.files import DurableLines, make_directory
from privacy.ledger.head import (
    Countersignature,
    TreeHead,
    parse_signed_line,
    parse_statement,
    sign_head,
    signed_line,
    utc_seconds,
    verify_countersignature,
    verify_head,
)
from privacy.ledger.merkle import MerkleTree, leaf_hash

ENTRIES_FILE = "entries.jsonl"
HEADS_FILE = "heads.jsonl"
COUNTERSIGNATURES_FILE = "countersignatures.jsonl"


class LedgerLog:
    """An append-only ledger in a folder; one process writes it at a time.

    What `append` returned is on the disk: after a crash it is there exactly once. `notes` says
    what was cut away at opening (writes cut short, never acknowledged).

    Args:
        directory: folder of the ledger, created if absent.
        name: name of the institution or coordinator whose ledger it is, `[a-z0-9-]{1,63}`.

    Raises:
        LedgerError: damaged (naming file and line), another ledger's folder, or in use.

    """

    def __init__(self, directory: Path, name: str) -> None:
        make_directory(directory)
        self._name = name
        self._tree = MerkleTree()
        self._entries: list[Entry] = []
        self._heads: list[Signed] = []
        self._last_head: TreeHead | None = None
        self._files: list[DurableLines] = []
        try:
            for file_name in (ENTRIES_FILE, HEADS_FILE, COUNTERSIGNATURES_FILE):
                self._files.append(DurableLines(directory / file_name))
            self._entry_file, self._head_file, self._countersignature_file = self._files
            self._load_entries(self._entry_file.lines)
            self._load_heads(self._head_file.lines)
        except BaseException:
            self.close()
            raise
        self.notes = tuple(file.note for file in self._files if file.note)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back."""
        for file in self._files:
            file.close()

    def release(self) -> None:
        """Let other processes of this owner write, until `retake`."""
        for file in self._files:
            file.release()

    def retake(self) -> bool:
        """Go on after `release`; tell whether others wrote meanwhile.

        Raises:
            LedgerError: what they wrote is damaged, or one of them is at it.

        """
        entries, heads, others = [file.retake() for file in self._files]
        self._load_entries(entries)
        self._load_heads(heads)
        return bool(entries or heads or others)

    @property
    def name(self) -> str:
        """Whose ledger it is."""
        return self._name

    @property
    def size(self) -> int:
        """Number of entries."""
        return len(self._entries)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, oldest first."""
        return tuple(self._entries)

    @property
    def heads(self) -> tuple[Signed, ...]:
        """All signed heads, oldest first."""
        return tuple(self._heads)

    @property
    def last_head(self) -> TreeHead | None:
        """The newest head that was signed, or None."""
        return self._last_head

    def append(self, kind: str, body: Body | JsonLike) -> Entry:
        """Write an entry and wait until the disk has it.

        Args:
            kind: a kind of `privacy.ledger.entries`.
            body: the model of that kind, or its JSON.

        Returns:
            The entry, acknowledged: it survives a crash from here on.

        Raises:
            LedgerError: an unknown kind or a body that does not fit it; nothing was written.
            DiskError: the disk failed; reopen the ledger to learn whether the entry is there.

        """
        entry = make_entry(self.size, kind, body)
        self._entry_file.append(entry.payload())
        self._remember(entry)
        return entry

    def root(self, size: int | None = None) -> bytes:
        """Return the Merkle root of the first `size` entries (all by default)."""
        return self._tree.root(size)

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """Prove that entry `index` is under the root of `size` entries."""
        return self._tree.inclusion_proof(index, size)

    def consistency_proof(self, old_size: int, size: int | None = None) -> list[bytes]:
        """Prove that the first `old_size` entries are still what they were."""
        return self._tree.consistency_proof(old_size, size)

    def sign_head(self, key: IdentityKey, moment: datetime | None = None) -> Signed:
        """Sign the ledger as it stands, keep the head, and return it.

        The tree only grows and held heads were checked against it at opening, so the new head
        extends the last one. A ledger that has not grown returns the head it has.

        Raises:
            LedgerError: the ledger is empty.

        """
        if self.size == 0:
            raise LedgerError("Expected a ledger with an entry to sign, got an empty one.")
        if self._last_head is not None and self._last_head.size == self.size:
            return self._heads[-1]
        head = TreeHead(
            ledger=self._name, size=self.size, root=self.root().hex(), time=utc_seconds(moment)
        )
        signed = sign_head(key, head)
        self._head_file.append(signed_line(signed))
        self._heads.append(signed)
        self._last_head = head
        return signed

    def add_countersignature(self, public_key: bytes, signed: Signed) -> Countersignature:
        """Keep a witness's signature under one of our heads.

        Args:
            public_key: pinned key of the witness, 32 bytes.
            signed: what the witness signed, domain "ledger-countersign".

        Raises:
            SignatureError: another key signed it.
            LedgerError: it is not about this ledger's history.

        """
        statement = verify_countersignature(public_key, signed)
        known = statement.ledger == self._name and statement.size <= self.size
        if not known or statement.root != self.root(statement.size).hex():
            raise LedgerError(
                f"Expected a countersignature of the ledger {self._name!r} with {self.size} "
                f"entries, got one by {statement.witness!r} of another history. Compare heads."
            )
        self._countersignature_file.append(signed_line(signed))
        return statement

    def verify_not_restored(self, public_key: bytes, signed: Signed) -> None:
        """Hold this ledger against a head that its owner signed and someone else kept.

        Args:
            public_key: the owner's own key, 32 bytes.
            signed: the head, whoever brings it.

        Raises:
            SignatureError: the owner did not sign it.
            LedgerError: it is of another ledger.
            RestoredError: it covers entries that are not here, or other ones.

        """
        head = verify_head(public_key, signed)
        if head.ledger != self._name:
            raise LedgerError(
                f"Expected a head of the ledger {self._name!r}, got one of {head.ledger!r}. "
                "Nothing was decided on it; ask who sent it for the right one."
            )
        if head.size > self.size or head.root != self.root(head.size).hex():
            raise RestoredError(
                f"Expected the {head.size} entries that {self._name!r} signed on {head.time}, got "
                f"{self.size} entries that do not hold them: this ledger was restored from an "
                "older copy. What was spent since is not in it. Put the newest copy of the ledger "
                "folder back. Where there is none, take the whole budget of the consent as spent."
            )

    def _remember(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._tree.append(leaf_hash(entry.payload()))

    def _load_entries(self, lines: Sequence[bytes]) -> None:
        for number, line in enumerate(lines, start=self.size):
            try:
                entry = parse_entry(line)
            except ValueError as error:
                raise _damaged(ENTRIES_FILE, number, str(error)) from error
            if entry.index != number:
                raise _damaged(ENTRIES_FILE, number, f"its index is {entry.index}, not {number}")
            self._remember(entry)

    def _load_heads(self, lines: Sequence[bytes]) -> None:
        for number, line in enumerate(lines, start=len(self._heads)):
            try:
                signed = parse_signed_line(line)
                head = parse_statement(signed.payload, TreeHead)
            except ValueError as error:
                raise _damaged(HEADS_FILE, number, str(error)) from error
            self._check_head(number, head)
            self._heads.append(signed)
            self._last_head = head

    def _check_head(self, number: int, head: TreeHead) -> None:
        if head.ledger != self._name:
            raise _damaged(HEADS_FILE, number, f"it is of {head.ledger!r}, not {self._name!r}")
        if head.size > self.size:
            reason = f"it covers {head.size} entries and the ledger holds {self.size}"
            raise _damaged(HEADS_FILE, number, reason)
        if head.root != self.root(head.size).hex():
            reason = f"the first {head.size} entries are not those that it signed"
            raise _damaged(HEADS_FILE, number, reason)


def _damaged(file_name: str, number: int, reason: str) -> LedgerError:
    return LedgerError(
        f"Expected an intact {file_name}, got a bad line {number + 1}: {reason}. Restore the "
        "newest backup of the folder, and train again only when it covers the heads that others "
        "countersigned; never edit it."
    )
