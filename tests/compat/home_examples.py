"""Examples of the files in the homes of nodes, of a coordinator and of its runs."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import torch

from client.data import Record
from client.membership import Membership
from client.outbox import Outbox
from client.unit_keys import UNIT_KEYS_FILE, UnitKeys
from coordinator.attempts import ROUNDS_FILE, Attempt, Phase
from coordinator.epoch_record import EpochRecord
from coordinator.service.archive import Manifest as BackupManifest
from coordinator.service.home import ServiceSettings
from coordinator.settings import RunSettings
from coordinator.store import RunStore
from models.optimiser import OptimiserState
from models.training_settings import OptimiserSettings, Recipe
from privacy.ledger.head import sign_head, signed_line
from privacy.ledger.pins import Pin, pins_bytes
from privacy.round_plan import sign_plan
from privacy.secagg.memory import PlanKey
from privacy.secagg.store import SqliteRoundStore
from protos.messages import Upload
from tests.compat.examples import (
    KEY,
    PRIVATE,
    STEP,
    TIME,
    b,
    h,
    head,
    round_plan,
    signed,
    wire_messages,
)

CONSENT = """\
# signed off by the officers
federation = "clinics"
coordinator_key = "{coordinator}"
purposes = ["triage"]
data_set = "notes"
unit = "person"
accountant = "schedule"
epsilon = 8.0
delta = 1e-6
epsilon_per_run = 4.0
epsilon_if_all_others_collude = 16.0
smallest_cohort = 3
tolerated_colluders = 1
trainable = ["blocks.*", "head"]
owned_experts_may_leave = true
runtimes = ["arion-grpc", "flower"]
expires = 2036-11-27
keep_data_sets_apart = true

[members]
east = "{east}"
north = "{north}"
west = "{west}"
"""
NODE = """\
name = "north"
data = "notes"
base_model = "base"
heldout = 0.125
validation = 0.25
chunk_sequences = 16
two_passes = true
proxy = "http://proxy.example.org:3128"

[fields]
text_fields = ["text"]
unit_field = "person"
"""
DIRECTORY = {name: f"{place:02x}" * 32 for place, name in enumerate(("east", "north", "west"), 201)}


def node_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Files of a node's home; those of a whole library are written by it into a folder."""
    yield "consent.toml", CONSENT.format(coordinator=h(), **DIRECTORY).encode()
    yield "node.toml", NODE.encode()
    membership = Membership(
        address="arion.example.org:7443", enrolment_address="arion.example.org:7444",
        name="north", federation="clinics", coordinator_key=h(), authority="authority PEM",
        key="key PEM", request="request PEM", certificate="certificate PEM",
    )  # fmt: skip
    yield "membership.json", membership.model_dump_json(indent=2).encode() + b"\n"
    records = [Record("text", person, "group", "file") for person in ("p-1", "p-2")]
    UnitKeys(folder / UNIT_KEYS_FILE, "person").own("notes", records)
    yield UNIT_KEYS_FILE, (folder / UNIT_KEYS_FILE).read_bytes()
    upload = next(each for each in wire_messages() if isinstance(each, Upload))
    digest = b()
    Outbox(folder / "outbox").seal(digest, upload, memoryview(b"masked words"))
    yield "outbox", (folder / "outbox" / f"{digest.hex()}.sealed").read_bytes()
    store = SqliteRoundStore(folder / "rounds.sqlite")
    store.claim_roster("clinics", b(), b())
    plan = b()
    store.claim_plan(PlanKey("clinics", "third", 7, 2, 3), plan)
    store.record_signed_set(plan, b())
    store.record_unmask_reply(plan, b"shares")
    store.close()
    yield "node rounds.sqlite", _dumped(folder / "rounds.sqlite")
    yield "coordinator.witness.json", signed_line(sign_head(KEY, head())) + b"\n"
    yield "identity.key", PRIVATE


def coordinator_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Files of a coordinator's home and of a run's."""
    settings = RunSettings(
        federation="clinics", run="third", members=DIRECTORY, n_min=3, colluders=1, rounds=5,
        step=STEP, recipe=Recipe(kind="lora", lora_rank=4, lora_seed=9, sequence_length=24),
        optimiser=OptimiserSettings(average_decay=0.5), base_model=Path("base"),
        coordinator=Path("../.."), plausible_batches=2.5, runtime="arion-grpc", deadline_s=20.0,
    )  # fmt: skip
    yield "run.json", settings.model_dump_json(indent=2).encode() + b"\n"
    store = RunStore(folder)
    plan = sign_plan(KEY, round_plan())
    names = (("east", "north"), "spoilt-sum", ("west",))
    store.save(Attempt(2, 3, Phase.SURVIVORS, plan, *names))
    store.close()
    yield "run rounds.sqlite", _dumped(folder / ROUNDS_FILE)
    parts = [torch.tensor([place, -place]) for place in (0.5, 1.5, 2.5, 3.5)]
    yield "state", OptimiserState(3, *parts).to_bytes()
    yield "plans.jsonl", signed_line(plan) + b"\n"
    statements = [{name: signed() for name in ("east", "north")} for _ in range(2)]
    yield "epoch.json", EpochRecord(12, h(), *statements).to_bytes()
    service = ServiceSettings(
        federation="clinics", hosts=("arion.example.org",), listen="0.0.0.0", port=443,
        metrics_port=9000, reflection=True, approvals=2, artefact_roles=("node",),
    )  # fmt: skip
    yield "service.json", service.model_dump_json(indent=2).encode() + b"\n"
    pins = {name: Pin(public_key=key, kind="node") for name, key in DIRECTORY.items()}
    pins["coordinator"] = Pin(public_key=KEY.public_key.hex(), kind="coordinator")
    yield "pins.json", pins_bytes(pins)
    digests = {"service.json": h(), "ledger/entries.jsonl": h()}
    backup = BackupManifest(federation="clinics", made=TIME, digests=digests)
    yield "backup manifest", backup.payload()


def _dumped(path: Path) -> bytes:
    """A database as SQL."""
    connection = sqlite3.connect(path)
    text = "\n".join(connection.iterdump())
    connection.close()
    return text.encode()
