"""A node's keys of the epochs it is in: in memory, and in tmpfs where there is one.

Each run has an epoch of its own, so that runs at the same time do not end each other's. A process
that was killed finds its keys in tmpfs and goes on with the attempts it was in; a machine that was
restarted has lost them, and new epochs begin. They are never written to a disk. In hybrid epochs
the secrets that a reveal draws for each peer are kept with them.
"""

import hashlib
import os
import shutil
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from privacy.identity import IdentityKey, Signed
from privacy.ledger.files import write_all
from privacy.secagg.keys import EPOCH_BYTES, EpochKeys, KeysLostError, RosterError
from privacy.secagg.memory import RoundStore, StoreConflict
from privacy.secagg.pairwise import PairwiseKeys
from privacy.secagg.reveals import OwnReveal, accept_reveals, reveal
from privacy.secagg.roster import Roster, accept_roster

HELD_EPOCHS = 8
"""Epochs that a node is in at once; the oldest is left for one more."""
_TMPFS = Path("/dev/shm")  # noqa: S108  (memory, not a shared temporary folder on a disk)
# In a folder per home: where it is, whose epochs these are, and a file per epoch.
_HOME, _COORDINATOR, _KEYS = "home", "coordinator", ".keys"
_PART = ".part"
_NUMBER_BYTES = 8


@dataclass
class Epoch:
    """The keys of one epoch, the bundle that was published for it, and how far it was entered."""

    number: int
    keys: EpochKeys
    bundle: Signed
    roster: Roster | None = None
    reveal: OwnReveal | None = None


class EpochKeeper:
    """Makes, keeps and finds again the keys of one node's epochs.

    Args:
        home: the node's home; names the files in tmpfs.
        node: the node's name.
        identity: signs bundles and reveals.
        store: remembers which roster each nonce was revealed for.
        hybrid: whether secrets shall also rest on ML-KEM-768.
        coordinator: the pinned key of who opens epochs, hex; another one counts its own.

    """

    def __init__(
        self,
        home: Path,
        node: str,
        identity: IdentityKey,
        store: RoundStore,
        *,
        hybrid: bool,
        coordinator: str,
    ) -> None:
        self._node, self._identity, self._memory, self._hybrid = node, identity, store, hybrid
        self._folder = _tmpfs_folder(home, identity.public_key)
        if self._folder is not None:
            _leave_others(self._folder, coordinator)
        self._held: dict[int, Epoch] = {}
        self._left: set[int] = set()

    @property
    def files(self) -> list[Path]:
        """What lies in tmpfs: a file per epoch."""
        if self._folder is None or not self._folder.is_dir():
            return []
        return sorted(self._folder.glob("*" + _KEYS))

    @property
    def numbers(self) -> Set[int]:
        """Of the epochs whose keys are held."""
        return self._held.keys()

    def enter(self, federation: str, number: int) -> Epoch:
        """Return the epoch's keys: those there are, or new ones.

        Raises:
            RosterError: an epoch that was left.

        """
        if not self._held:
            self._load(federation)
        if number not in self._held:
            self._check_open(number)
            epoch = self._epoch(federation, number, EpochKeys.generate())
            self._store(epoch)
            self._held[number] = epoch
            self.forget(sorted(self._held)[:-HELD_EPOCHS])
        return self._held[number]

    def accept_roster(
        self, bundles: Sequence[Signed], pins: Mapping[str, bytes], federation: str, *, least: int
    ) -> Signed:
        """Check an epoch's bundles and reveal our nonce; the same bytes for the same bundles.

        Args:
            bundles, pins, federation, least: see `privacy.secagg.roster.accept_roster`.

        Raises:
            KeysLostError: no epoch was entered since this process started, nor left keys in tmpfs;
                or only others than this one.
            RosterError: another roster of the epoch was accepted before, or as
                `privacy.secagg.roster.accept_roster`.

        Formal guarantee: a nonce is revealed for one roster, ever, and that is on the disk before:
        whoever sees it has committed to all other nonces.

        """
        if not self._held:
            self._load(federation)
        if not self._held:
            raise KeysLostError(
                "Expected a request for keys first, got a roster: this node holds no epoch's keys. "
                "The coordinator must open a new epoch."
            )
        own = [epoch for epoch in self._held.values() if epoch.bundle in bundles]
        current = own[0] if own else self._held[max(self._held)]
        try:
            roster = accept_roster(
                bundles, pins, current.bundle, current.number, federation, least=least
            )
        except RosterError as error:
            if own:
                raise
            raise KeysLostError(str(error)) from error  # it may hold another run's only
        try:
            self._memory.claim_roster(federation, roster.own_commitment, roster.digest)
        except StoreConflict as error:
            raise RosterError(str(error)) from error
        if current.reveal is None or current.reveal.roster != roster.digest:
            current.reveal = reveal(roster, current.keys, self._identity)
            if self._hybrid:  # otherwise it comes out the same again
                self._store(current)
        current.roster = roster
        return current.reveal.signed

    def accept_reveals(self, reveals: Sequence[Signed]) -> PairwiseKeys:
        """Check an epoch's nonces and return our pairwise secrets.

        Raises:
            KeysLostError: no roster was accepted since this process started, or only of others.
            RosterError: as `privacy.secagg.reveals.accept_reveals`.

        """
        open_ = [epoch for epoch in self._held.values() if epoch.roster is not None]
        if not open_:
            raise KeysLostError(
                "Expected a roster first, got nonces: this node accepted none since it started. "
                "The coordinator must show the roster again, or open a new epoch."
            )
        own = [epoch for epoch in open_ if epoch.reveal and epoch.reveal.signed in reveals]
        current = own[0] if own else max(open_, key=lambda epoch: epoch.number)
        assert current.reveal is not None and current.roster is not None, "chosen by that"  # noqa: PT018
        try:
            roster, ciphertexts = accept_reveals(current.roster, reveals, current.reveal.signed)
        except RosterError as error:
            if own:
                raise
            raise KeysLostError(str(error)) from error  # as above
        received = {
            name: current.keys.decapsulate(ciphertext) for name, ciphertext in ciphertexts.items()
        }
        return PairwiseKeys(current.keys, roster, {**current.reveal.kem_secrets, **received})

    def forget(self, numbers: Collection[int] | None = None) -> None:
        """Delete keys; what was masked under them can no longer be opened with our help.

        Args:
            numbers: of the epochs that are left for good; None is all there are.

        """
        for path in self.files:
            if numbers is None or _number(path) in numbers:
                path.unlink(missing_ok=True)
        for number in self._held.keys() & set(self._held if numbers is None else numbers):
            del self._held[number]
            self._left.add(number)

    def _check_open(self, number: int) -> None:
        newest = max(self._held, default=0)
        if number in self._left or number <= newest - HELD_EPOCHS:
            raise RosterError(
                f"Expected an epoch after {max(newest, 0, *self._left)}, got {number}, which was "
                "left. The coordinator must open a new epoch."
            )

    def _epoch(self, federation: str, number: int, keys: EpochKeys) -> Epoch:
        bundle = keys.bundle(federation, number, self._node, self._identity, hybrid=self._hybrid)
        return Epoch(number, keys, bundle)

    def _load(self, federation: str) -> None:
        for path in self.files:
            data, number = path.read_bytes()[_NUMBER_BYTES:], _number(path)
            keys, shown = EpochKeys.from_bytes(data[:EPOCH_BYTES]), data[EPOCH_BYTES:]
            self._held[number] = self._epoch(federation, number, keys)
            self._held[number].reveal = OwnReveal.from_bytes(shown) if shown else None

    def _store(self, epoch: Epoch) -> None:
        """Keep an epoch's keys, and what was revealed, if anything was."""
        if self._folder is None:
            return
        path = self._folder / f"{epoch.number:020d}{_KEYS}"
        part = path.with_suffix(_PART)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            write_all(descriptor, epoch.number.to_bytes(_NUMBER_BYTES, "big"))
            write_all(descriptor, epoch.keys.to_bytes())
            write_all(descriptor, epoch.reveal.to_bytes() if epoch.reveal else b"")
        finally:
            os.close(descriptor)
        part.replace(path)


def _number(path: Path) -> int:
    with path.open("rb") as file:
        return int.from_bytes(file.read(_NUMBER_BYTES), "big")


def _tmpfs_folder(home: Path, public_key: bytes) -> Path | None:
    """Make the folder of a home's key files; None without tmpfs.

    Folders of homes that are gone go too: their keys are of no use to anybody but a thief. So does
    that of a home that lay in the same place under another identity: its epochs are not this one's.
    """
    if not _TMPFS.is_dir() or not os.access(_TMPFS, os.W_OK):
        return None
    place = str(home.resolve())
    users = _TMPFS / f"arion-{os.getuid()}"
    folder = users / hashlib.sha256(public_key + place.encode()).hexdigest()[:32]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / _HOME).write_text(place)
    for other in users.iterdir():
        if other != folder and not _has_home(other, place):
            shutil.rmtree(other, ignore_errors=True)
    return folder


def _leave_others(folder: Path, coordinator: str) -> None:
    """Delete the keys of an earlier coordinator's epochs, whose numbers are not this one's.

    What a process left that died while it wrote goes too.
    """
    for part in folder.glob("*" + _PART):
        part.unlink(missing_ok=True)
    path = folder / _COORDINATOR
    known = path.read_text() if path.exists() else None
    if known == coordinator:
        return
    for keys in () if known is None else folder.glob("*" + _KEYS):
        keys.unlink(missing_ok=True)
    part = path.with_suffix(_PART)
    part.write_text(coordinator)
    part.replace(path)


def _has_home(folder: Path, taken: str) -> bool:
    """Tell whether the home of a folder of keys is there, in a place that nobody else has taken.

    One that is being made counts as such.
    """
    try:
        place = (folder / _HOME).read_text()
        return not place or (place != taken and Path(place).exists())
    except FileNotFoundError:
        return folder.is_dir()
    except OSError:
        return True
