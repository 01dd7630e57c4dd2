"""An institution's node: it answers the coordinator's messages, within its consent."""

import hashlib
import logging
import threading
from collections.abc import Callable, Sequence, Set
from pathlib import Path

from client.budget import NodeBooks
from client.config import CONSENT_FILE, IDENTITY_FILE, LEDGER_FOLDER, load_node_config
from client.epoch import EpochKeeper
from client.gate import ExpertsTrainer, Gate
from client.histories import Histories
from client.home_checks import check_identity, check_unit
from client.module_outbox import ModuleOutbox, SealedModule
from client.outbox import Outbox, SealedUpload
from client.plans import epoch_of, refuse_plan
from client.preflight import PreflightError, check_private_gradients
from client.seats import Seat, Seats
from client.training import LocalTrainer
from client.unit_keys import open_unit_keys
from models.checkpoint import model_digest
from models.parallel import ALONE, World
from models.vector import trainable_layout
from privacy.canonical import sha256_hex
from privacy.consent import load_consent
from privacy.dp.clipping import ClippingError
from privacy.experts_job import SIMULATE, ExpertsJob
from privacy.identity import IdentityKey, Signed
from privacy.ledger.log import LedgerLog
from privacy.rounds import PlanCode, PlanRefused, RoundPlan
from privacy.secagg.header import RefusalCode, SecAggRefused
from privacy.secagg.node import SecAggNode
from privacy.secagg.store import SqliteRoundStore
from protos.messages import SurvivorSignature, SurvivorsRequest, UnmaskReply, UnmaskRequest
from protos.round_messages import HeadCountersigned, HeadOffer, UploadRequest

_LOG = logging.getLogger("arion.node")


class Node:
    """One institution's node, open in its home; one process at a time.

    Messages are answered one at a time. Plans under which a round is open are kept, so that later
    phases refer to them by digest.

    Args:
        home: holds node.toml, identity.key, consent.toml; ledger, outbox and memory live there too.
        runtime: where the node runs: "simulate", "arion-grpc" or "flower".
        world: processes that share its training; this is rank 0 of them.

    Raises:
        NodeError, ConsentError, IdentityError, LedgerError, DataError: as each file's reader says.

    """

    def __init__(self, home: Path, runtime: str, world: World = ALONE) -> None:
        self.home = home
        self.config = load_node_config(home)
        self.config.device.check()
        self.consent = load_consent(home / CONSENT_FILE)
        self._identity = IdentityKey.load(home / IDENTITY_FILE)
        check_identity(self.config, self.consent, self._identity)
        check_unit(self.config, self.consent)
        # A simulation's nodes are asked one after the other.
        shares = runtime == SIMULATE
        self._seats = Seats(self.config, self.consent, world, shares=shares)
        self._lock = threading.Lock()
        self._ledger = LedgerLog(home / LEDGER_FOLDER, self.config.name)
        try:
            self._store = SqliteRoundStore(home / "rounds.sqlite")
        except BaseException:
            self._ledger.close()
            raise
        try:
            self._epochs = EpochKeeper(
                home,
                self.config.name,
                self._identity,
                self._store,
                hybrid=self.consent.post_quantum,
                coordinator=self.consent.coordinator_key,
            )
            field = self.config.fields.unit_field
            self._unit_keys = open_unit_keys(home, self.consent, field)
            books = NodeBooks(self._ledger, self._identity, self.consent, self._unit_keys)
            books.join("csprng" if self.config.seed is None else "seeded, not private")
        except BaseException:
            self.close()
            raise
        self._books = books
        key = bytes.fromhex(self.consent.coordinator_key)
        self._histories = Histories(home, self._ledger, books, self._identity, key)
        self._outbox = Outbox(home / "outbox")
        modules = ModuleOutbox(home / "experts")
        self._gate = Gate(
            self.consent,
            home / CONSENT_FILE,
            books,
            self._outbox,
            modules,
            runtime,
            self.config.seed,
        )
        self._members: dict[int, SecAggNode] = {}
        self._plans: dict[str, RoundPlan] = {}
        self._checked: Seat | None = None

    @property
    def name(self) -> str:
        """The node's name in its federation."""
        return self.config.name

    def close(self) -> None:
        """Give files and locks back; other processes of the node end."""
        self._ledger.close()
        self._store.close()
        self._seats.close()

    def publish_keys(self, federation: str, epoch: int) -> Signed:
        """Return this node's signed bundle of an epoch, making keys if they are new."""
        with self._lock:
            self._check_federation(federation)
            return self._epochs.enter(federation, epoch).bundle

    def accept_roster(self, bundles: Sequence[Signed]) -> Signed:
        """Check the epoch's bundles under the consent's pins, and reveal our nonce.

        Raises:
            RosterError: see `client.epoch.EpochKeeper.accept_roster`.

        """
        with self._lock:
            pins = {name: bytes.fromhex(key) for name, key in self.consent.members.items()}
            return self._epochs.accept_roster(
                bundles, pins, self.consent.federation, least=self.consent.smallest_roster
            )

    def accept_reveals(self, reveals: Sequence[Signed]) -> None:
        """Enter an epoch, now that everyone revealed its nonce.

        Raises:
            RosterError: see `client.epoch.EpochKeeper.accept_reveals`.

        """
        with self._lock:
            pairwise = self._epochs.accept_reveals(reveals)
            member = SecAggNode(self._identity, pairwise, self._store)
            self._members[pairwise.roster.epoch] = member
            for number in self._members.keys() - self._epochs.numbers:
                del self._members[number]
            self._histories.enter(pairwise.roster.epoch)

    def release(self, request: UploadRequest, vector: memoryview) -> SealedUpload:
        """Train under a plan and return the sealed upload; see `client.gate.Gate.release`.

        Args:
            request: signed plan and recipe.
            vector: the trainable parameters that the plan's model digest covers, fp32 bytes.

        """
        with self._lock:
            member = self._in_epoch(epoch_of(request.plan))
            self._histories.verify_recalled()
            self._histories.verify_whole(hashlib.sha256(request.plan.payload).digest())
            self._histories.verify_shown(member.roster.epoch)
            sealed = self._gate.release(
                request.plan,
                member,
                lambda plan: self._open_trainer(plan, request.recipe, vector),
            )
            plan = RoundPlan.from_payload(request.plan.payload)
            self._plans[plan.run] = plan
            self._outbox.keep_only(self._books.newest_plans())
            self._leave(self._books.epochs_of(plan.run) - {plan.epoch})
        _LOG.info("released round %d attempt %d of %s", plan.round, plan.attempt, plan.run)
        return sealed

    def release_experts(
        self, job: ExpertsJob, open_training: Callable[[Path], ExpertsTrainer]
    ) -> SealedModule:
        """Train and seal owned experts; see `client.gate.Gate.release_experts`."""
        with self._lock:
            self._histories.verify_whole(job.digest())
            return self._gate.release_experts(job, open_training)

    def sign_survivors(self, request: SurvivorsRequest) -> SurvivorSignature:
        """Stand for one survivor set; see `SecAggNode.sign_survivors`."""
        with self._lock:
            plan = self._plan_of(request.plan_digest)
            return self._in_epoch(plan.epoch).sign_survivors(plan, request.headers)

    def unmask(self, request: UnmaskRequest) -> UnmaskReply:
        """Open the packets of a certified set; see `SecAggNode.unmask`."""
        with self._lock:
            plan = self._plan_of(request.plan_digest)
            return self._in_epoch(plan.epoch).unmask(plan, request)

    def held_head(self) -> Signed | None:
        """The newest head of the coordinator's ledger that this node holds, or None."""
        return self._histories.held_head

    def countersign(self, offer: HeadOffer) -> HeadCountersigned:
        """Countersign the coordinator's newest head; see `client.histories.Histories`."""
        with self._lock:
            signed = self._histories.countersign(offer)
            return HeadCountersigned(signed, self._histories.own_head())

    def recall(self, shown: Signed | None) -> Signed:
        """Hold the own ledger against a head of it; see `client.histories.Histories.recall`."""
        with self._lock:
            return self._histories.recall(shown)

    def close_run(self, federation: str, run: str) -> None:
        """Note that a run makes no more releases, and forget the keys that its masks came from."""
        with self._lock:
            self._check_federation(federation)
            self._books.close(run)
            self._leave(self._books.epochs_of(run))
            self._plans.pop(run, None)

    def _leave(self, epochs: Set[int]) -> None:
        """Forget the keys of epochs that a run is done with: each run has its own."""
        self._epochs.forget(epochs)
        for number in epochs:
            self._members.pop(number, None)

    def _open_trainer(
        self, plan: RoundPlan, recipe_json: bytes, vector: memoryview
    ) -> LocalTrainer:
        """Set the model to the plan's parameters, after checking what the plan says of them."""
        if sha256_hex(recipe_json) != plan.recipe_digest:
            refuse_plan(PlanCode.WRONG_RECIPE, "", "the recipe that the plan names, got another")
        seat = self._seats.of(recipe_json, self._unit_keys)
        if trainable_layout(seat.model) != plan.trainable:
            refuse_plan(
                PlanCode.NOT_TRAINABLE, "trainable", "the recipe's trainable tensors, got others"
            )
        if len(vector) != 4 * plan.vector_length:
            refuse_plan(PlanCode.WRONG_MODEL, "", "a vector of the plan's length, got another")
        seat.write(vector)
        if model_digest(seat.model) != plan.model_digest:
            refuse_plan(PlanCode.WRONG_MODEL, "", "the model that the plan names, got another")
        self._check_first(seat)
        seat.take_up()
        return seat.trainer

    def _check_first(self, seat: Seat) -> None:
        """Look once at what a recipe trains, before anything is reserved for it."""
        if self._checked is not seat:
            try:
                check_private_gradients(seat.model, seat.trainer.recipe)
            except (PreflightError, ClippingError) as error:
                raise PlanRefused(PlanCode.NOT_TRAINABLE, "", str(error)) from error
            self._checked = seat

    def _in_epoch(self, epoch: int | None) -> SecAggNode:
        """The member of an epoch; of any where a plan names none, for the gate to refuse it."""
        if epoch is None and self._members:
            epoch = max(self._members)
        member = self._members.get(epoch or 0)
        if member is None:
            raise SecAggRefused(
                RefusalCode.OTHER_ROSTER,
                "Expected a roster of this epoch first, got none: this node holds no such epoch's "
                "keys. The coordinator must open a new epoch.",
            )
        return member

    def _plan_of(self, plan_digest: bytes) -> RoundPlan:
        for plan in self._plans.values():
            if plan.digest() == plan_digest:
                return plan
        raise SecAggRefused(
            RefusalCode.OTHER_PLAN,
            "Expected a plan that this node uploaded under, got another.",
        )

    def _check_federation(self, federation: str) -> None:
        if federation != self.consent.federation:
            raise PlanRefused(
                PlanCode.WRONG_FEDERATION,
                "federation",
                f"Expected federation {self.consent.federation!r}, got {federation!r}.",
            )
