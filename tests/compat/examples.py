"""One example of everything that travels in a run or is signed, with no value twice.

`freeze` writes them down once; the tests read what was written, not these. Equal values would hide
that two fields changed places.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from models.training_settings import OptimiserSettings
from privacy.canonical import canonical_bytes
from privacy.dp.local_plan import LocalPlan
from privacy.dp.plan import PrivateStep
from privacy.experts_job import ExpertsJob
from privacy.identity import IdentityKey
from privacy.ledger import entries
from privacy.ledger.entries import FilterBasis, FilterCharge, make_entry
from privacy.ledger.head import Countersignature, TreeHead
from privacy.round_plan import RoundPlan
from privacy.secagg.header import Header
from privacy.secagg.keys import KeyBundle
from privacy.secagg.reveals import OwnReveal, Reveal
from protos import epoch_messages, messages, round_messages
from protos.messages import EdgeCommitment, EdgeShare, ProvenPacket, SealedPacket, SurvivorShares
from protos.signed import Signed
from protos.wire import WireMessage

PRIVATE = bytes(range(32))
KEY = IdentityKey.from_bytes(PRIVATE)
TIME = "2026-11-27T03:40:00Z"
_STEP: Mapping[str, Any] = {
    "clipping_norm": 1.5, "noise_multiplier": 1.25, "sampling_probability": 0.5,
    "expected_batch": 24.0, "releases": 6, "unit": "person", "ring_bits": 12,
    "noise_in_lattice_units": 5.0, "clipping": "automatic",
}  # fmt: skip
STEP = PrivateStep(**_STEP, honest_survivors=2)
_numbers = itertools.count(1)


def h() -> str:
    """A digest of its own, hex."""
    return f"{next(_numbers):04x}" * 16


def b(size: int = 32) -> bytes:
    """Bytes of their own."""
    return (next(_numbers).to_bytes(2, "big") * size)[:size]


def signed() -> Signed:
    return Signed(canonical_bytes({"statement": next(_numbers)}), b(64))


def wire_messages() -> Iterator[WireMessage]:
    """Every kind that a run sends, with all fields set, and those that may lack one."""
    signature = messages.SurvivorSignature("north", b(), b(), b(64))
    packets = (SealedPacket("east", b(48)), SealedPacket("west", b(49)))
    edges = (EdgeCommitment("east", b()), EdgeCommitment("west", b()))
    proven = (ProvenPacket("east", b(48), (b(), b())), ProvenPacket("west", b(49), ()))
    shares = (SurvivorShares("east", b(), (EdgeShare("south", b()), EdgeShare("west", b()))),)
    yield epoch_messages.KeyBundleMessage(signed())
    yield epoch_messages.RevealMessage(signed())
    yield epoch_messages.RosterMessage((signed(), signed()))
    yield epoch_messages.RevealsMessage((signed(), signed()))
    yield messages.Upload("north", signed(), b(), b(), edges, packets)
    yield messages.SurvivorsRequest(b(), (signed(), signed()))
    yield signature
    yield messages.UnmaskRequest(b(), (signed(), signed()), (signature,), proven)
    yield messages.UnmaskReply("north", b(), b(), shares)
    yield messages.Refusal("over-budget", "epsilon", "Expected less.")
    yield round_messages.EpochRequest("clinics", 300)
    yield round_messages.UploadRequest(signed(), b'{"kind":"full"}')
    yield round_messages.HeadQuery("coordinator")
    yield round_messages.HeadHeld(signed())
    yield round_messages.HeadHeld(None)
    yield round_messages.HeadOffer(signed(), (b(), b()))
    yield round_messages.HeadCountersigned(signed(), signed())
    yield round_messages.OwnHeadShown(signed())
    yield round_messages.OwnHeadShown(None)
    yield round_messages.OwnHead(signed())
    yield round_messages.RunClose("clinics", "third")
    yield round_messages.Done()


def filled(kind: type[Message], choice: int = 0) -> Message:
    """A message of the exchange with all fields set; of a oneof, the one chosen."""
    made = kind()
    descriptor: Descriptor = kind.DESCRIPTOR
    for field in descriptor.fields:
        oneof = field.containing_oneof
        if oneof is None or oneof.fields[choice] is field:
            _fill(made, field)
    return made


def _fill(made: Message, field: FieldDescriptor) -> None:
    repeated = field.is_repeated
    if field.message_type is not None:
        places = [getattr(made, field.name)]
        if repeated:
            places = [getattr(made, field.name).add() for _ in range(2)]
        for place in places:
            place.CopyFrom(filled(type(place)))
        return
    kinds: dict[int, Callable[[], Any]] = {
        FieldDescriptor.CPPTYPE_STRING: lambda: (
            b(4) if field.type == FieldDescriptor.TYPE_BYTES else f"{field.name} {next(_numbers)}"
        ),
        FieldDescriptor.CPPTYPE_DOUBLE: lambda: next(_numbers) + 0.5,
    }
    value = kinds.get(field.cpp_type, lambda: next(_numbers))
    if repeated:
        getattr(made, field.name).extend(value() for _ in range(2))
    else:
        setattr(made, field.name, value())


def round_plan() -> RoundPlan:
    return RoundPlan(
        federation="clinics", run="third", epoch=7, round=2, attempt=3, roster_digest=h(),
        model_digest=h(), recipe_digest=h(), trainable=(("embedding", 11), ("head", 13)),
        vector_length=24, cohort=("east", "north", "south", "west"), groups=1, degree=4,
        least_neighbours=2, committee=5, quorum=6, n_min=3, colluders=8, step=STEP,
        dp_event=STEP.event_json(), runtime="arion-grpc", seeded=False,
    )  # fmt: skip


def statements() -> Iterator[tuple[str, bytes]]:
    """What keys sign, beside the ledger."""
    yield "round-plan", round_plan().payload()
    bundle = {"federation": "clinics", "epoch": 7, "node": "north", "mask_key": h()}
    keys = {"encryption_key": h(), "nonce_commitment": h()}
    yield "key-bundle", KeyBundle(**bundle, **keys).payload()
    yield "key-bundle.hybrid", KeyBundle(**bundle, **keys, kem_key=b(1184).hex()).payload()
    yield "reveal", Reveal(node="north", roster=h(), nonce=h()).payload()
    ciphertexts = {"south": b(1088).hex(), "west": b(1088).hex()}
    hybrid = Reveal(node="north", roster=h(), nonce=h(), ciphertexts=ciphertexts)
    yield "reveal.hybrid", hybrid.payload()
    secrets = {"south": b(32), "north": b(32)}
    yield "own-reveal.hybrid", OwnReveal(Signed(hybrid.payload(), b(64)), secrets).to_bytes()
    header = Header(
        plan=h(), node="north", words=h(), count=b(16).hex(), commitments=h(), packets_root=h()
    )
    yield "header", header.payload()
    yield "tree-head", head().payload()
    countersigned = Countersignature(ledger="coordinator", size=9, root=h(), witness="north")
    yield "countersignature", countersigned.payload()


def head() -> TreeHead:
    return TreeHead(ledger="north", size=9, root=h(), time=TIME)


def job() -> ExpertsJob:
    own = {**_STEP, "honest_survivors": 1, "clipping": "fixed"}
    return ExpertsJob(
        run="owned", owner="north", base_digest=h(), public_digest=h(), sources=(2, 0),
        train_rows=True, gain=1.5, margin=0.75, sequence_length=24, sequences_per_unit=2,
        optimiser=OptimiserSettings(bias_correction=True), trainable=(("rows", 11), ("up", 13)),
        plan=LocalPlan(
            embedding=PrivateStep(**own | {"sampling_probability": 1.0, "releases": 1}),
            step=PrivateStep(**own | {"clipping": "automatic"}), embedding_length=16,
            vector_length=24,
        ),
        delta_1e15=10**9, seeded=False, data="Ward notes.", licence="Research.",
    )  # fmt: skip


def ledger_entries() -> Iterator[tuple[str, bytes]]:
    """A line of a ledger for every kind of entry, with what may be left out."""
    event = STEP.event_json()
    noise: entries.Noise = "csprng"
    basis = FilterBasis(
        vector_length=24, contributors=4, noise_in_lattice_units=5.0, honest_survivors=2
    )
    charge = FilterCharge(basis=basis, rdp=("17", "19"), slack="23", tail="29")
    debit: Mapping[str, Any] = {"epoch": 7, "round": 2, "attempt": 3, "event": event}
    reserved: Mapping[str, Any] = {"event": event, "releases": 6, "epsilon_micro": 1_900_000}
    more = {"delta_1e15": 10**9, "accountant": "schedule", "unit": "person", "data_set": "notes"}
    bodies: list[tuple[str, entries.Body]] = [
        ("federation-joined", entries.FederationJoined(
            federation="clinics", consent_digest=h(), noise=noise)),
        ("run-reserved", entries.RunReserved(
            run="third", **reserved, **more, noise=noise, kept_apart=True)),
        ("run-reserved", entries.RunReserved(
            run="owned", **reserved, **more, noise="seeded, not private", job=h())),
        ("run-reserved", entries.RunReserved(
            run="shown", **reserved, **more, noise=noise, basis=entries.ScheduleBasis(
                vector_length=24, contributors=60, noise_in_lattice_units=5.0, is_sparse=True))),
        ("filter-opened", entries.FilterOpened(
            epsilon_micro=8_000_000, delta_1e15=10**9, epsilon_per_run_micro=2_000_000,
            run_delta_1e15=10**8, epsilon_if_all_others_collude_micro=9_000_000, unit="person",
            data_set="notes")),
        ("release-debited", entries.ReleaseDebited(
            run="third", **debit, plan_digest=h(), sealed_digest=h(), noise=noise, charge=charge,
            unit_keys=h())),
        ("experts-debited", entries.ExpertsDebited(
            run="owned", owner="north", plan_digest=h(), sealed_digest=h(), card_digest=h(),
            event=event, noise=noise)),
        ("refusal", entries.Refusal(code="over-budget", clause="epsilon", plan_digest=h())),
        ("run-closed", entries.RunClosed(run="third")),
        ("run-opened", entries.RunOpened(
            run="third", federation="clinics", cohort=("east", "north"), model_digest=h())),
        ("round-recorded", entries.RoundRecorded(
            run="third", round=2, attempt=3, plan_digest=h(), survivors=("east", "north"),
            model_digest_before=h(), model_digest_after=h(), event=event, outcome="applied")),
        ("round-aborted", entries.RoundAborted(
            run="third", round=2, attempt=3, plan_digest=h(), code="few-survivors")),
        ("release", entries.Release(run="third", name="model", model_digest=h())),
    ]  # fmt: skip
    for index, (kind, body) in enumerate(bodies):
        yield kind, make_entry(index, kind, body).payload()
