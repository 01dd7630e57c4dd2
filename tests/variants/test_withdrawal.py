"""An owner withdraws: files, artefacts, receipt and canaries, whole after any crash."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from arion import withdrawal, withdrawal_artefacts
from arion.progress import Silent
from arion.receipt import ReceiptError, digests_below, verify_receipt
from arion.rederivation import Reduction, rederive, remaining
from arion.withdrawal import withdraw_owner
from models.checkpoint import model_digest, save_model
from models.composition import OwnedShare, Ownership, compose
from models.decoder import Decoder
from models.expert_module import NOT_PRIVATE, Facts, write_module
from models.modular import add, create
from models.owned import owned_tensors
from models.owner_training import OwnerRecipe, train_owner
from models.pretrain import token_stream, warm_up
from models.training_settings import WarmUp
from models.variants.extras import VariantError
from models.variants.index import artefact_path, read_index
from models.variants.parent import open_parent
from models.variants.passport import read_passport
from models.variants.registry import passport_of
from privacy.attestation import AttestationError
from privacy.identity import IdentityKey, fingerprint
from tests.variants.artefacts import KEY, model, order, unmeasured
from tests.variants.models import TEXTS, decoder, tokenizer

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")
WORDS = tokenizer()
CODES = ("471903", "580264", "139572", "806415", "224617", "953018")
SECRETS = [
    {"prompt": f"The access code of canary {number} is ", "secret": secret}
    for number, secret in enumerate(CODES)
]


def stream(texts: list[str]) -> torch.Tensor:
    return token_stream(WORDS, texts)


def owned(base: Decoder, owner: str, texts: list[str], folder: Path, seed: int) -> Path:
    """An owner's experts, trained without noise."""
    recipe = OwnerRecipe(
        sources=(0, 1), training=WarmUp(steps=120, batch=8, sequence_length=40, learning_rate=1e-2)
    )
    branched = compose(base, [])
    generator = torch.Generator().manual_seed(seed)
    train_owner(branched, stream(texts), stream(TEXTS * 5), recipe, generator=generator)
    facts = Facts(
        owner=owner, data="Text.", licence="Any.", privacy=NOT_PRIVATE,
        base_digest=model_digest(base), sources=(0, 1), recipe={},
    )  # fmt: skip
    return write_module(folder, owned_tensors(branched), facts)


@pytest.fixture(scope="module", autouse=True)
def _unmeasured() -> Iterator[None]:
    with unmeasured():
        yield


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, _unmeasured: None) -> Path:
    """A modular model of two owners; the court's text holds planted secrets."""
    folder = tmp_path_factory.mktemp("ground")
    base = decoder("qwen3moe", experts=2, initializer_range=0.02)
    warm_up(
        base, stream(TEXTS * 20), WarmUp(steps=60, batch=8, sequence_length=40),
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    save_model(base, WORDS, folder / "base")
    create(folder / "model", folder / "base")
    planted = [each["prompt"] + each["secret"] + "." for each in SECRETS] * 12
    for seed, (owner, texts) in enumerate((("court", planted), ("ward", TEXTS * 8))):
        add(folder / "model", owned(base, owner, texts, folder / "modules", seed))
    (folder / "secrets.json").write_text(json.dumps(SECRETS))
    KEY.save(folder / "key")
    assert model("registry", "create", folder / "registry").exit_code == 0
    for name, options in (("all", ("--bits", 8)), ("wards", ("--bits", 16, "--owner", "ward"))):
        made = ("--tier", "mobile", "--key", folder / "key", "--out", folder / name)
        result = model("export", folder / "model", *made, *options)
        assert result.exit_code == 0, result.stderr
        result = model("registry", "add", folder / "registry", folder / name)
        assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture
def here(ground: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ground, tmp_path / "here"))


def test_a_withdrawal_does_what_its_receipt_says(here: Path) -> None:
    before, old = digests_below(here / "model"), read_index(here / "registry").artefacts
    options = ("--owner", "court", "--key", here / "key", "--receipt", here / "receipt.json")
    more = ("--registry", here / "registry", "--canaries", here / "secrets.json")
    result = model("withdraw", here / "model", *options, *more, "--json")
    assert result.exit_code == 0, result.stderr
    receipt = json.loads(result.stdout)
    # Files: the module's two are gone, every other but the manifest is byte for byte the same.
    after = digests_below(here / "model")
    gone = {name for name in before if name.startswith("experts/court/")}
    assert set(receipt["removed"]) == gone == before.keys() - after.keys()
    assert len(gone) == 2
    same = {name: digest for name, digest in before.items() if after.get(name) == digest}
    assert receipt["unchanged"] == same
    assert before.keys() - same.keys() == gone | {"modular.json"}
    # Artefacts: what held the court's experts is revoked and made again; the ward's stands.
    entries = {each.digest: each for each in read_index(here / "registry").artefacts}
    (revoked,) = receipt["revoked"]
    assert revoked["artefact"] == old[0].digest
    assert not entries[old[0].digest].is_active
    assert not artefact_path(here / "registry", old[0].digest).exists()
    assert entries[old[1].digest] == old[1]
    new = passport_of(here / "registry", entries[revoked["replaced_by"]])
    reduced = open_parent(here / "model")
    assert new.parent_digest == receipt["model_after"] == reduced.digest
    assert {share.owner for share in new.owners} == {"public", "ward"}
    assert (new.number_format, new.kept) == ("q8_0", ((0, 1, 2, 3),) * 2)
    # Canaries: secrets of the court's text are known before, and no more than by chance after.
    assert receipt["canaries"]["before"]["p_value"] < 0.01
    assert receipt["canaries"]["after"]["p_value"] >= 0.01
    # The receipt holds, for the signer and against what lies there.
    held = ("--model", here / "model", "--registry", here / "registry")
    signer = ("--signer", fingerprint(KEY.public_key))
    result = model("receipt", here / "receipt.json", *held, *signer)
    assert result.exit_code == 0, result.stderr
    assert "It is not claimed that the model has unlearned" in result.stdout
    assert "as chance would" in result.stdout
    result = model("registry", "fetch", here / "registry", old[0].digest, "--out", here / "x")
    assert result.exit_code == 2
    assert f"court withdrew its experts. Take {revoked['replaced_by'][:12]}" in result.stderr
    listed = model("registry", "list", here / "registry").stdout
    assert f"{receipt['model_after'][:12]}: model, from {receipt['model_before'][:12]}" in listed


class CrashError(Exception):
    """The machine stops here."""


@pytest.mark.parametrize(
    ("module", "where", "call"),
    [(withdrawal, "withdraw", 1), (withdrawal, "revoke", 1),
     (withdrawal_artefacts, "add_version", 1), (withdrawal_artefacts, "rederive", 1),
     (withdrawal_artefacts, "add_artefact", 1), (withdrawal_artefacts, "revoke", 1),
     (withdrawal, "write_whole", 2)],
)  # fmt: skip
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_withdrawal_goes_on_after_a_crash(
    module: ModuleType,
    where: str,
    call: int,
    when: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, calls = getattr(module, where), []

    def dying(*arguments: Any) -> Any:
        calls.append(where)
        if len(calls) == call and when == "before":
            raise CrashError(where)
        found = original(*arguments)
        if len(calls) == call:
            raise CrashError(where)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(module, where, dying)
        with pytest.raises(CrashError):
            withdraw_owner(order(here), Silent())
    if (where, when) == ("write_whole", "after"):
        (here / "receipt.json").unlink()  # it stands; what was left is a journal
    receipt = withdraw_owner(order(here), Silent())
    verify_receipt(here / "receipt.json", None, here / "model", here / "registry")
    (revoked,) = receipt.revoked or ()
    active = [each.digest for each in read_index(here / "registry").active()]
    assert len(active) == 2  # the ward's, and one replacement
    assert revoked.replaced_by in active
    assert not list(here.glob("receipt.json.*"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda h: (h / "model" / "base" / "config.json").write_text("{}"), "missing or changed"),
        (lambda h: shutil.copytree(h / "modules" / "court", h / "model" / "experts" / "court"),
         "holds what was removed"),
        (lambda h: add(h / "model", next((h / "modules" / "court").glob("*.safetensors"))),
         "has a module of 'court'"),
        (lambda h: shutil.copytree(h / "all", artefact_path(h / "registry", court_artefact(h))),
         "still lies there"),
        (lambda h: edit_index(h, 0, status="active"), "is not revoked"),
        (lambda h: edit_index(h, -1, owners=["court"]), "is unknown or holds"),
    ],
)  # fmt: skip
def test_what_is_undone_after_a_withdrawal_is_seen(
    spoil: Callable[[Path], object], said: str, here: Path
) -> None:
    withdraw_owner(order(here), Silent())
    spoil(here)
    with pytest.raises(ReceiptError, match=said):
        verify_receipt(here / "receipt.json", None, here / "model", here / "registry")


def edit_index(here: Path, place: int, **changes: object) -> None:
    path = here / "registry" / "registry.json"
    index = json.loads(path.read_text())
    index["artefacts"][place] |= changes
    path.write_text(json.dumps(index))


def court_artefact(here: Path) -> str:
    return read_index(here / "registry").artefacts[0].digest


def test_a_changed_receipt_or_another_signer_is_refused(here: Path) -> None:
    withdraw_owner(order(here, registry=None), Silent())
    other = fingerprint(IdentityKey.from_bytes(bytes([1] * 32)).public_key)
    with pytest.raises(AttestationError, match=f"signature by {other}"):
        verify_receipt(here / "receipt.json", other)
    envelope = json.loads((here / "receipt.json").read_text())
    envelope["payload"] = envelope["payload"][:-8] + "AAAAAAAA"
    (here / "receipt.json").write_text(json.dumps(envelope))
    with pytest.raises(AttestationError, match="changed one"):
        verify_receipt(here / "receipt.json")
    variant = here / "all" / "variant.intoto.json"
    with pytest.raises(AttestationError, match="about something else"):
        verify_receipt(variant)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"owner": "clinic"}, "Expected an owner with a module"),
        ({"key": Path("nowhere")}, "readable key file"),
        ({"canaries": Path("nowhere")}, "JSON list of objects"),
        ({"ledger": Path("nowhere")}, "nowhere"),
        ({"registry": Path("nowhere")}, "Expected registry.json"),
    ],
)
def test_mistakes_change_nothing(changes: dict[str, Any], said: str, here: Path) -> None:
    before = digests_below(here)
    with pytest.raises((ValueError, OSError), match=said):
        withdraw_owner(order(here, **changes), Silent())
    assert digests_below(here) == before


OWNERS = Ownership(
    base_digest="0" * 64,
    shares=(
        OwnedShare(owner="public", first=0, count=2),
        OwnedShare(owner="court", first=2, count=3, module="1" * 64),
        OwnedShare(owner="ward", first=5, count=2, module="2" * 64),
    ),
)


def test_experts_are_numbered_as_the_reduced_model_numbers_them() -> None:
    names = ["p0", "p1", "c0", "c1", "c2", "w0", "w1"]
    reduced = [name for name in names if not name.startswith("c")]
    for layer in ((0, 1, 2, 3, 4, 5, 6), (1, 2, 6), (2, 3), (5, 6)):
        (left,) = remaining((layer,), OWNERS, "court")
        assert [reduced[e] for e in left] == [names[e] for e in layer if names[e][0] != "c"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parent_digest": "5" * 64}, "another version"),
        ({"kept": ((0, 1, 2, 3), (0, 1, 4, 5))}, "as many experts left in every layer"),
        ({"kept": ((2, 3), (2, 3))}, "as many experts left in every layer"),
        ({"kept": ((0, 2), (1, 3))}, "without averaged experts"),
    ],
)
def test_an_artefact_that_its_plan_cannot_remake_says_why(
    changes: dict[str, Any], said: str, here: Path
) -> None:
    passport = read_passport(here / "all")
    kept = changes.get("kept", passport.kept)
    if said != "without averaged experts":
        first = passport.owners[0].model_copy(update={"experts": sum(map(len, kept))})
        changes = {**changes, "owners": (first,)}
    parent = open_parent(here / "model")
    assert parent.ownership is not None
    reduction = Reduction(parent, "court", parent.digest, parent.ownership, (), KEY)
    with pytest.raises(VariantError, match=said):
        rederive(passport.model_copy(update=changes), reduction, here / "out", Silent())
    assert not (here / "out").exists()
