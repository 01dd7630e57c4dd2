"""An owner withdraws whose experts taught a dense student: taught anew, or revoked and said why."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from arion import variant_dense
from arion.progress import Silent
from arion.receipt import digests_below, verify_receipt
from arion.withdrawal import withdraw_owner
from arion.withdrawal_before import WithdrawalOrder
from models.checkpoint import model_digest, save_model
from models.composition import compose
from models.durable import file_digest
from models.expert_module import NOT_PRIVATE, Facts, write_module
from models.modular import add, create
from models.owned import owned_tensors
from models.owner_training import OwnerRecipe, train_owner
from models.pretrain import token_stream
from models.training_settings import WarmUp
from models.variants.extras import VariantError
from models.variants.index import artefact_path, read_index
from models.variants.parent import open_parent
from models.variants.registry import passport_of
from privacy.identity import fingerprint
from tests.variants.artefacts import KEY, model, public, unmeasured
from tests.variants.artefacts import order as court_order
from tests.variants.models import TEXTS, decoder, tokenizer

pytest.importorskip("transformers")
WORDS = tokenizer()
FORMAT = ("--tier", "cluster", "--bits", 32)
SHAPE = ("--dense", "--distil-steps", 12, "--distil-batch", 4, "--distil-length", 16)
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def _unmeasured() -> Iterator[None]:
    with unmeasured():
        yield


def add_owner(folder: Path, owner: str, seed: int) -> None:
    base = decoder("qwen3moe", experts=2)
    branched = compose(base, [])
    recipe = OwnerRecipe(
        sources=(0, 1), training=WarmUp(steps=3, batch=4, sequence_length=20, learning_rate=1e-2)
    )
    stream = token_stream(WORDS, TEXTS * 5)
    generator = torch.Generator().manual_seed(seed)
    train_owner(branched, stream, stream, recipe, generator=generator)
    facts = Facts(
        owner=owner, data="Text.", licence="Any.", privacy=NOT_PRIVATE,
        base_digest=model_digest(base), sources=(0, 1), recipe={},
    )  # fmt: skip
    add(folder / "model", write_module(folder / "modules", owned_tensors(branched), facts))


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, _unmeasured: None) -> Path:
    """A modular model of two owners, and in a registry: three students."""
    folder = tmp_path_factory.mktemp("ground")
    save_model(decoder("qwen3moe", experts=2), WORDS, folder / "base")
    create(folder / "model", folder / "base")
    for seed, owner in enumerate(("court", "ward")):
        add_owner(folder, owner, seed)
    public(folder / "text", TEXTS * 6, "lessons")
    public(folder / "cases", TEXTS[:1], "cases")
    KEY.save(folder / "key")
    assert model("registry", "create", folder / "registry").exit_code == 0
    students: dict[str, tuple[object, ...]] = {
        "all": ("--width", 2 * 96, "--depth", 1),
        "ward": ("--owner", "ward"),
        "wide": ("--width", 5 * 96, "--domain", folder / "cases", "--choose", "mass"),
    }
    for name, options in students.items():
        given = ("--public", folder / "text", "--key", folder / "key", "--out", folder / name)
        result = model("export", folder / "model", *FORMAT, *SHAPE, *given, *options)
        assert result.exit_code == 0, result.stderr
        result = model("registry", "add", folder / "registry", folder / name)
        assert result.exit_code == 0, result.stderr
        assert f"Signed by {fingerprint(KEY.public_key)}" in result.stderr
    return folder


@pytest.fixture
def here(ground: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ground, tmp_path / "here"))


def test_who_signed_is_said_where_nobody_said_who_must_have(here: Path) -> None:
    digest = read_index(here / "registry").artefacts[0].digest
    signer = fingerprint(KEY.public_key)
    for named, says in ((), True), (("--signer", signer), False):
        given = ("registry", "fetch", here / "registry", digest, "--out", here / f"out{len(named)}")
        result = model(*given, *named)
        assert result.exit_code == 0, result.stderr
        assert (f"Signed by {signer}" in result.stderr) == says


def order(here: Path, **changes: Any) -> WithdrawalOrder:
    return court_order(here, **{"public": (here / "text",), **changes})


def test_a_student_is_taught_anew_by_the_reduced_model(here: Path) -> None:
    old = read_index(here / "registry").artefacts
    given = ("--owner", "court", "--key", here / "key", "--receipt", here / "receipt.json")
    more = ("--registry", here / "registry", "--public", here / "text", "--public", here / "cases")
    result = model("withdraw", here / "model", *given, *more, "--json")
    assert result.exit_code == 0, result.stderr
    receipt = json.loads(result.stdout)
    entries = {each.digest: each for each in read_index(here / "registry").artefacts}
    assert entries[old[1].digest] == old[1]  # the court's experts had no part in the ward's
    first, second = receipt["revoked"]
    assert (first["artefact"], second["artefact"]) == (old[0].digest, old[2].digest)
    for each in (first, second):
        assert not entries[each["artefact"]].is_active
        assert not artefact_path(here / "registry", each["artefact"]).exists()
    new = passport_of(here / "registry", entries[first["replaced_by"]])
    taught = new.distillation
    assert taught is not None
    assert new.parent_digest == taught.teacher == open_parent(here / "model").digest
    assert {share.owner for share in new.owners} == {"public", "ward"}
    assert (taught.joined, len(taught.layers), new.contents.layers) == (2, 1, 1)
    assert new.chosen_by.endswith("made again without those of court")
    # It is what an export of the reduced model makes, bit for bit.
    fresh = ("--public", here / "text", "--width", 2 * 96, "--depth", 1, "--out", here / "fresh")
    assert model("export", here / "model", *FORMAT, *SHAPE, *fresh).exit_code == 0
    replaced = artefact_path(here / "registry", first["replaced_by"])
    assert file_digest(here / "fresh" / WEIGHTS) == file_digest(replaced / WEIGHTS)
    # Five experts were joined; four are left.
    assert second["replaced_by"] is None
    assert "at least 5 experts left in every layer to join, got 4" in second["why_none"]
    said = " ".join(receipt["remains"])
    assert "2 of the revoked artefacts were distilled from a teacher with court's experts" in said
    assert "1 of them were distilled anew, from the reduced model on public text alone" in said
    verify_receipt(here / "receipt.json", None, here / "model", here / "registry")
    assert not list(here.glob("receipt.json.*"))


def edited(here: Path) -> tuple[Path, ...]:
    (here / "text" / "a.txt").write_text("other words " * 400)
    return (here / "text",)


def more_files(here: Path) -> tuple[Path, ...]:
    (here / "text" / "b.txt").write_text("a file that was not there")
    return (here / "text",)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (lambda here: (), "'lessons' of its distillation with --public"),
        (edited, "'lessons' of its distillation with --public"),
        (more_files, "'lessons' of its distillation with --public"),
        (lambda here: (here / "cases",), "got 'cases'"),
    ],
)
def test_without_its_very_text_a_student_is_revoked_only(texts: Any, said: str, here: Path) -> None:
    receipt = withdraw_owner(order(here, public=texts(here)), Silent())
    assert receipt.revoked is not None
    assert [each.replaced_by for each in receipt.revoked] == [None, None]
    assert said in (receipt.revoked[0].why_none or "")
    assert "0 of them were distilled anew" in " ".join(receipt.remains)
    active = list(read_index(here / "registry").active())
    assert [entry.owners for entry in active] == [("public", "ward")]
    verify_receipt(here / "receipt.json", None, here / "model", here / "registry")


def test_the_text_that_chose_its_experts_is_asked_for_too(here: Path) -> None:
    receipt = withdraw_owner(order(here), Silent())
    assert receipt.revoked is not None
    assert "'cases' of its calibration with --public" in (receipt.revoked[1].why_none or "")


class KilledError(Exception):
    """The machine stops here."""


def test_a_withdrawal_that_is_killed_while_it_distils_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variant_dense, "_SNAPSHOT_EVERY", 5)
    steps: list[int] = []
    train = variant_dense.distil

    def dying(*given: Any, **named: Any) -> Any:
        def progress(step: int, kl: float) -> None:
            steps.append(step)
            if len(steps) == 7:
                raise KilledError

        return train(*given, **{**named, "progress": progress})

    monkeypatch.setattr(variant_dense, "distil", dying)
    with pytest.raises(KilledError):
        withdraw_owner(order(here), Silent())
    assert not any(each.owners == ("public", "court", "ward") for each in
                   read_index(here / "registry").active())  # fmt: skip
    receipt = withdraw_owner(order(here), Silent())
    assert steps == [*range(1, 8), *range(6, 13)]
    assert receipt.revoked is not None
    assert receipt.revoked[0].replaced_by is not None
    verify_receipt(here / "receipt.json", None, here / "model", here / "registry")
    assert not list(here.glob("receipt.json.*"))


def test_students_of_two_widths_are_told_apart(here: Path) -> None:
    """Same words, format and owners: a call that goes on takes neither for the other."""
    given = ("--public", here / "text", "--key", here / "key", "--out", here / "narrow")
    narrow = ("--width", 96, "--depth", 1)
    assert model("export", here / "model", *FORMAT, *SHAPE, *given, *narrow).exit_code == 0
    assert model("registry", "add", here / "registry", here / "narrow").exit_code == 0
    receipt = withdraw_owner(order(here, public=(here / "text", here / "cases")), Silent())
    assert receipt.revoked is not None
    made = [each.replaced_by for each in receipt.revoked]
    entries = {each.digest: each for each in read_index(here / "registry").artefacts}
    found = [passport_of(here / "registry", entries[d]).distillation for d in made if d]
    assert [each.joined for each in found if each] == [2, 1]


def test_private_or_compared_text_changes_nothing(here: Path) -> None:
    private = Path(shutil.copytree(here / "text", here / "private"))
    (private / "data.toml").write_text('text_fields = ["text"]\nunit_field = "patient"\n')
    before = digests_below(here)
    with pytest.raises(ValueError, match="'patient' names whose data"):
        withdraw_owner(order(here, public=(private,)), Silent())
    with pytest.raises(VariantError, match="not trained on, got a file of 'lessons'"):
        withdraw_owner(order(here, heldout=(here / "text",)), Silent())
    assert digests_below(here) == before
