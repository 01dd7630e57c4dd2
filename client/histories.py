"""The two histories that a node depends on, and what stops it when one of them is not whole.

The coordinator's ledger must never show two histories: the node countersigns only heads that extend
the one it holds, and in each epoch releases nothing before it was shown one. The node's own ledger
must hold all that it ever signed: after a start, and before anything is released, the coordinator
shows the newest head that it holds of it. Whoever brings such a head, this node signed it, so a
ledger that does not hold it was put back to an older state.
"""

import hashlib
import logging
from pathlib import Path

from client.budget import NodeBooks
from privacy.consent_pins import COORDINATOR
from privacy.identity import IdentityKey, SignatureError, Signed
from privacy.ledger.entries import ForkError, RestoredError
from privacy.ledger.files import replace_durably
from privacy.ledger.head import COUNTERSIGN_DOMAIN, HeadWitness, parse_signed_line, verify_head
from privacy.ledger.log import LedgerLog
from privacy.rounds import PlanCode, PlanRefused
from privacy.secagg.header import RefusalCode, SecAggRefused
from protos.round_messages import HeadOffer

FORK_FILE = "FORK"
RESTORED_FILE = "RESTORED"
_EARLIER, _SHOWN = "earlier-", 12
_LOG = logging.getLogger("arion.node")


class Histories:
    """A node's own ledger and its view of the coordinator's.

    A history that is not whole leaves a file in the home that an officer must remove; until then
    nothing is released, neither to a round nor as a module.

    Args:
        home: the node's home.
        ledger: the node's own.
        books: the same, as the gate reads it.
        identity: signs heads and countersignatures.
        coordinator_key: pinned key of the coordinator, 32 bytes.

    """

    def __init__(
        self,
        home: Path,
        ledger: LedgerLog,
        books: NodeBooks,
        identity: IdentityKey,
        coordinator_key: bytes,
    ) -> None:
        self._home, self._ledger, self._books = home, ledger, books
        self._identity, self._coordinator_key = identity, coordinator_key
        path = home / f"{COORDINATOR}.witness.json"
        _set_aside(path, coordinator_key)
        self._witness = HeadWitness(path, COORDINATOR, ledger.name)
        self._is_recalled = False
        self._unshown: set[int] = set()

    @property
    def held_head(self) -> Signed | None:
        """The newest head of the coordinator's ledger that this node holds, or None."""
        return self._witness.held_signed

    def enter(self, epoch: int) -> None:
        """Note that an epoch was entered: the coordinator's ledger is to be shown anew in it."""
        self._unshown.add(epoch)

    def countersign(self, offer: HeadOffer) -> Signed:
        """Countersign the coordinator's newest head, if it extends the one held.

        Raises:
            ForkError: the coordinator's ledger shows another history; training stops.

        """
        try:
            payload = self._witness.accept(offer.head, offer.proof, self._coordinator_key)
        except ForkError as error:
            replace_durably(self._home / FORK_FILE, str(error).encode() + b"\n")
            raise
        self._unshown.clear()
        return self._identity.sign(COUNTERSIGN_DOMAIN, payload)

    def own_head(self) -> Signed:
        """The newest head of this node's own ledger, for others to keep."""
        return self._ledger.sign_head(self._identity)

    def recall(self, shown: Signed | None) -> Signed:
        """Hold the own ledger against the newest head of it that the coordinator kept.

        Nothing is written to a ledger that is not whole.

        Args:
            shown: that head; None where the coordinator has none, which it can only say to a node
                that has not released to a round yet.

        Returns:
            The newest head of the own ledger, for the coordinator to keep.

        Raises:
            SignatureError, LedgerError: not a head of this node's.
            RestoredError: the ledger was restored from an older copy, or no head was shown.

        """
        if shown is not None:
            self._verify(shown)
        elif self._books.has_released:
            raise RestoredError(
                "Expected the newest head of this node's ledger, got none, and this node has "
                "released before. The coordinator must have its folder 'members', restored from a "
                "backup or taken over from an earlier home (arion coordinator init --follows)."
            )
        self._is_recalled = True
        return self.own_head()

    def verify_recalled(self) -> None:
        """Refuse a release before the coordinator showed what it holds of this node's ledger."""
        if not self._is_recalled:
            raise SecAggRefused(
                RefusalCode.OTHER_ROSTER,
                "Expected the newest head of this node's ledger to be shown first, got a plan. "
                "The coordinator must open a new epoch.",
            )

    def verify_shown(self, epoch: int) -> None:
        """Refuse a release before the coordinator showed that its ledger holds what we hold of it.

        A coordinator that was restored from an older copy cannot show it.

        Raises:
            SecAggRefused: no head was countersigned since the epoch was entered.

        """
        if epoch in self._unshown:
            raise SecAggRefused(
                RefusalCode.OTHER_ROSTER,
                "Expected the newest head of the coordinator's ledger to be shown first, got a "
                "plan. The coordinator must open a new epoch.",
            )

    def verify_whole(self, plan_digest: bytes) -> None:
        """Refuse a release while a file says that a history is not whole.

        Raises:
            PlanRefused: written to the ledger, unless the ledger itself is not whole.

        """
        if (self._home / RESTORED_FILE).exists():
            raise _refusal(PlanCode.RESTORED_LEDGER, "this node's own ledger", RESTORED_FILE)
        if (self._home / FORK_FILE).exists():
            refusal = _refusal(PlanCode.FORKED_LEDGER, "the coordinator's ledger", FORK_FILE)
            self._books.refuse(refusal, plan_digest)
            raise refusal

    def _verify(self, shown: Signed) -> None:
        try:
            self._ledger.verify_not_restored(self._identity.public_key, shown)
        except RestoredError as error:
            replace_durably(self._home / RESTORED_FILE, str(error).encode() + b"\n")
            raise


def _set_aside(path: Path, coordinator_key: bytes) -> None:
    """Keep a head that an earlier coordinator signed as evidence, and begin anew with this one's.

    Only the institution's officer can bring that about, by pinning another key. Who is pinned once
    more is held to the newest head of its own that was set aside.
    """
    if path.exists():
        signed = parse_signed_line(path.read_bytes().removesuffix(b"\n"))
        if _size(signed, coordinator_key) is not None:
            return
        digest = hashlib.sha256(signed.payload).hexdigest()[:_SHOWN]
        earlier = path.with_name(f"{COORDINATOR}.{_EARLIER}{digest}.json")
        path.replace(earlier)
        _LOG.warning(
            "the consent pins another coordinator than the one whose ledger was followed: its "
            "newest head is kept as %s",
            earlier.name,
        )
    kept: list[tuple[int, Path]] = []
    for each in path.parent.glob(f"{COORDINATOR}.{_EARLIER}*.json"):
        size = _size(parse_signed_line(each.read_bytes().removesuffix(b"\n")), coordinator_key)
        if size is not None:
            kept.append((size, each))
    if kept:
        max(kept)[1].replace(path)


def _size(signed: Signed, coordinator_key: bytes) -> int | None:
    """How many entries a head covers; None where another key signed it."""
    try:
        return verify_head(coordinator_key, signed).size
    except SignatureError:
        return None


def _refusal(code: PlanCode, whose: str, file: str) -> PlanRefused:
    return PlanRefused(
        code,
        "",
        f"Expected one history of {whose}, got two: see {file} in this node's home. An officer "
        "must settle it, then remove that file.",
    )
