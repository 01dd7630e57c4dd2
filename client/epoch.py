"""A node's keys of the current epoch: in memory, and in tmpfs where there is one.

A process that was killed finds its keys in tmpfs and goes on with the attempt it was in; a machine
that was restarted has lost them, and a new epoch begins. They are never written to a disk. Hybrid
epochs draw secrets of their own for each peer: those stay in the process.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from privacy.identity import IdentityKey, Signed
from privacy.ledger.files import write_all
from privacy.secagg.keys import EpochKeys, RosterError
from privacy.secagg.memory import RoundStore, StoreConflict
from privacy.secagg.pairwise import PairwiseKeys
from privacy.secagg.roster import OwnReveal, Roster, accept_reveals, accept_roster, reveal

_TMPFS = Path("/dev/shm")  # noqa: S108  (memory, not a shared temporary folder on a disk)
_NUMBER_BYTES = 8


@dataclass(frozen=True)
class Epoch:
    """The keys of one epoch and the bundle that was published for it."""

    number: int
    keys: EpochKeys
    bundle: Signed


class EpochKeeper:
    """Makes, keeps and finds again the keys of one node's current epoch.

    Args:
        home: the node's home; names the file in tmpfs.
        node: the node's name.
        identity: signs bundles and reveals.
        store: remembers which roster each nonce was revealed for.
        hybrid: whether secrets shall also rest on ML-KEM-768.

    """

    def __init__(
        self, home: Path, node: str, identity: IdentityKey, store: RoundStore, *, hybrid: bool
    ) -> None:
        self._node, self._identity, self._memory, self._hybrid = node, identity, store, hybrid
        self._path = None if hybrid else _tmpfs_file(home)
        self._current: Epoch | None = None
        self._roster: Roster | None = None
        self._reveal: OwnReveal | None = None

    def enter(self, federation: str, number: int) -> Epoch:
        """Return the epoch's keys: those there are, or new ones for a later epoch.

        Raises:
            RosterError: an epoch before the current one.

        """
        current = self._current or self._load(federation)
        if current is None or current.number < number:
            keys = EpochKeys.generate()
            self._store(number, keys)
            current = self._epoch(federation, number, keys)
            self._roster = self._reveal = None
        if current.number != number:
            raise RosterError(
                f"Expected epoch {current.number} or a later one, got {number}. The coordinator "
                "must open a new epoch."
            )
        self._current = current
        return current

    def accept_roster(
        self, bundles: Sequence[Signed], pins: Mapping[str, bytes], federation: str
    ) -> Signed:
        """Check the epoch's bundles and reveal our nonce; the same bytes for the same bundles.

        Raises:
            RosterError: no epoch was entered, another roster of it was accepted before, too many
                epochs, or as `privacy.secagg.roster.accept_roster`.

        Formal guarantee: a nonce is revealed for one roster, ever, and that is on the disk before:
        whoever sees it has committed to all other nonces.

        """
        current = self._current
        if current is None:
            raise RosterError("Expected a request for keys first, got a roster.")
        roster = accept_roster(bundles, pins, current.bundle, current.number, federation)
        try:
            self._memory.claim_roster(federation, roster.own_commitment, roster.digest)
        except StoreConflict as error:
            raise RosterError(str(error)) from error
        if self._reveal is None or self._roster is None or self._roster.digest != roster.digest:
            self._reveal = reveal(roster, current.keys, self._identity)
        self._roster = roster
        return self._reveal.signed

    def accept_reveals(self, reveals: Sequence[Signed]) -> PairwiseKeys:
        """Check the epoch's nonces and return our pairwise secrets.

        Raises:
            RosterError: no roster was accepted, or as `privacy.secagg.roster.accept_reveals`.

        """
        current, own = self._current, self._reveal
        if current is None or own is None or self._roster is None:
            raise RosterError("Expected a roster first, got nonces.")
        roster, ciphertexts = accept_reveals(self._roster, reveals, own.signed)
        received = {
            name: current.keys.decapsulate(ciphertext) for name, ciphertext in ciphertexts.items()
        }
        return PairwiseKeys(current.keys, roster, {**own.kem_secrets, **received})

    def forget(self) -> None:
        """Delete the keys; what was masked under them can no longer be opened with our help."""
        self._current = self._roster = self._reveal = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _epoch(self, federation: str, number: int, keys: EpochKeys) -> Epoch:
        bundle = keys.bundle(federation, number, self._node, self._identity, hybrid=self._hybrid)
        return Epoch(number, keys, bundle)

    def _load(self, federation: str) -> Epoch | None:
        if self._path is None or not self._path.exists():
            return None
        data = self._path.read_bytes()
        number = int.from_bytes(data[:_NUMBER_BYTES], "big")
        return self._epoch(federation, number, EpochKeys.from_bytes(data[_NUMBER_BYTES:]))

    def _store(self, number: int, keys: EpochKeys) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        part = self._path.with_suffix(".part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            write_all(descriptor, number.to_bytes(_NUMBER_BYTES, "big") + keys.to_bytes())
        finally:
            os.close(descriptor)
        part.replace(self._path)


def _tmpfs_file(home: Path) -> Path | None:
    """The key file of a home, in a folder of this user's; None where there is no tmpfs."""
    if not _TMPFS.is_dir() or not os.access(_TMPFS, os.W_OK):
        return None
    name = hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:32]
    return _TMPFS / f"arion-{os.getuid()}" / name
