"""Examples of what lies beside models: cards, manifests, passports, indexes, receipts."""

from collections.abc import Iterator

from arion.audit_secrets import PlantedSecret
from arion.receipt import Canaries, Exposures, Receipt, Revoked
from arion.withdrawal_before import Before
from models.composition import OwnedShare, Ownership
from models.effort.verifier import Card as VerifierCard
from models.effort.verifier import Stopping
from models.expert_module import Card, PrivacyClaim
from models.modular import Manifest, ModuleEntry
from models.variants.claims import Audited, LedgerClaim
from models.variants.contents import Contents
from models.variants.distil import Distillation, Distilling, Standing
from models.variants.index import Entry, Index, Version
from models.variants.passport import (
    Missing,
    OwnerShare,
    Passport,
    PublicSource,
    TextFigures,
    Verification,
)
from privacy.attestation import attest
from tests.compat.examples import KEY, TIME, h

CLAIM = PrivacyClaim(
    epsilon_micro=1_900_000, delta_1e15=10**9, unit="person", accountant="PLD", ledger="north, 3"
)
LEDGER = LedgerClaim(
    node="north", entries=9, root=h(), epsilon_micro=1_900_000, delta_1e15=10**9, noise="csprng",
    names_parent=True,
)  # fmt: skip


def model_files() -> Iterator[tuple[str, bytes]]:
    """Files that describe models, as they are written."""
    card = Card(
        owner="north", data="Ward notes.", licence="Research.", privacy=CLAIM, base_digest=h(),
        sources=(2, 0), recipe={"job": {"run": "owned"}}, weights_digest=h(), tensors={"up": h()},
    )  # fmt: skip
    manifest = Manifest(
        base_digest=h(), base_files={"config.json": h()},
        modules=(ModuleEntry(owner="north", weights_digest=h(), card_digest=h()),),
        leaving=(ModuleEntry(owner="west", weights_digest=h(), card_digest=h()),),
    )  # fmt: skip
    shares = (
        OwnedShare(owner="public", first=0, count=4),
        OwnedShare(owner="north", first=4, count=2, module=h(), licence="Research.", privacy=CLAIM),
    )
    ownership = Ownership(base_digest=h(), shares=shares)
    verifier = VerifierCard(
        features=("length", "votes"), sources=("small", "large"), most=8, content=True,
        decay=0.125, stopping=Stopping(power=1, level=0.0625), questions=120, data_sha256=h(),
        weights_sha256=h(),
    )  # fmt: skip
    receipt = _receipt()
    before = Before(
        owner="north", base_digest=h(), model_digest=h(), files={"modular.json": h()},
        removed={"experts/north": h()}, ownership=ownership, artefacts={h(): _passport(False)},
        exposures=Exposures(secrets=8, mean_bits=1.25, p_value=0.5),
    )  # fmt: skip
    secret = PlantedSecret(
        institution="north", unit="17", prompt="The code is", secret="482913", included=True
    )
    named = {
        "module card": card, "modular.json": manifest, "experts.json": ownership,
        "verifier.json": verifier, "variant.json": _passport(True),
        "variant.json.unverified": _passport(False), "registry.json": _index(),
        "receipt": receipt, "withdrawal journal": before, "planted secret": secret,
    }  # fmt: skip
    for name, record in named.items():
        yield name, record.model_dump_json(indent=2).encode() + b"\n"
    said = {"format": 1, "tier": "small"}
    yield "attestation", attest(KEY, {"variant.json": h()}, "https://example.org/variant/v1", said)


def _passport(is_verified: bool) -> Passport:
    figures = TextFigures(
        text="news", tokens=512, loss=2.5, model_loss=2.25, kl=0.125, top1=0.875,
        largest_difference=0.75,
    )  # fmt: skip
    verification = Verification(
        runtime="llama.cpp", fidelity=(figures,), quality=(figures,), tokens_per_s=31.5, threads=2,
        context=256, resident_bytes=1 << 20, joules_per_1000_tokens=4.5, machine="2 cores",
    )  # fmt: skip
    standing = (Standing(kl=0.5, loss=3.5), Standing(kl=0.25, loss=3.25))
    distillation = Distillation(
        teacher=h(), layers=(0, 2), joined=2, criterion="mass", settings=Distilling(steps=7),
        tokens=14336, heldout_tokens=1024, teacher_loss=3.0, before=standing[0], after=standing[1],
    )  # fmt: skip
    audited = Audited(
        canaries=40, included=21, tries=100, delta=1e-6, confidence=0.95, epsilon_at_least=0.5,
        guessed=12, correct=8, most_it_can_show=2.5, secrets=h(),
    )  # fmt: skip
    return Passport(
        tier="small", container="gguf", number_format="q8_0", parent="merged", parent_digest=h(),
        parent_experts=6, kept=((0, 2), (1, 3)), chosen_by="mass",
        distillation=distillation if is_verified else None,
        contents=Contents(
            architecture="qwen3moe", layers=2, experts=4, experts_per_token=3, vocabulary=300,
            tokenizer=h(),
        ),
        owners=(OwnerShare(
            owner="north", experts=5, module=h(), privacy=CLAIM, licence="Research."),),
        texts=(PublicSource(
            name="news", use="held-out", source="An invented paper.", licence="CC0",
            files={"a.txt": h()}),),
        ledger=(LEDGER,), audited=audited if is_verified else None,
        verification=verification if is_verified else Missing(missing_extra="edge"),
        file_bytes=4096, notes=("For tests.",), files={"model.gguf": h()},
    )  # fmt: skip


def _index() -> Index:
    first, second, gone, kept = h(), h(), h(), h()
    rest = {"owners": ("north",), "tier": "small", "container": "gguf", "number_format": "q8_0"}
    sizes = {"experts": 4, "file_bytes": 4096}
    return Index(
        versions=(
            Version(digest=first, name="merged", because="trained"),
            Version(digest=second, name="reduced", derived_from=first, because="withdrawn"),
        ),
        artefacts=(
            Entry(
                digest=gone, version=first, **rest, **sizes, status="revoked",
                because="north withdrew", replaced_by=kept,
            ),
            Entry(digest=kept, version=second, **rest, **sizes),
        ),
    )  # fmt: skip


def _receipt() -> Receipt:
    exposures = [Exposures(secrets=8, mean_bits=bits, p_value=bits / 4) for bits in (1.25, 0.75)]
    return Receipt(
        owner="north", created=TIME, version="0.1.0", model="model", model_before=h(),
        model_after=h(), base_digest=h(), removed={"experts/north": h()}, unchanged={"base": h()},
        revoked=(Revoked(artefact=h(), replaced_by=h()), Revoked(
            artefact=h(), replaced_by=None, why_none="no text")),
        canaries=Canaries(before=exposures[0], after=exposures[1]), ledger=LEDGER,
        remains=("The shared parts.",),
    )  # fmt: skip
