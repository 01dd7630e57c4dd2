"""`arion model export --dense`: from a model to a student that passes, and what is refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from arion import variant_dense
from arion.cli import app
from arion.variant_publication import PREDICATE
from models.checkpoint import load_model, model_digest, save_model
from models.composition import OwnedShare, Ownership, save_composed
from models.decoder import Decoder
from models.durable import file_digest
from models.expert_module import NOT_PRIVATE
from models.variants import check
from models.variants.distil import Distilling, training_flops
from models.variants.experts import prune
from models.variants.extras import VariantError
from models.variants.kinds import KINDS, Opening
from models.variants.passport import read_passport, verify_artefact
from models.variants.probe import Probe
from privacy.attestation import attest
from privacy.identity import IdentityKey, fingerprint
from tests.variants.models import TEXTS, decoder, tokenizer

pytest.importorskip("transformers")
WORDS, KEY = tokenizer(), IdentityKey.from_bytes(bytes(32))
OWNERS = Ownership(
    base_digest="0" * 64,
    shares=(
        OwnedShare(owner="public", first=0, count=2),
        OwnedShare(owner="court", first=2, count=2, module="1" * 64, privacy=NOT_PRIVATE),
        OwnedShare(owner="ward", first=4, count=2, module="2" * 64, privacy=NOT_PRIVATE),
    ),
)
STEPS = ("--distil-steps", 12, "--distil-batch", 4, "--distil-length", 16)
DENSE = ("--dense", *STEPS, "--distil-rate", 3e-3)


def model(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["model", *map(str, arguments)])


def parent() -> Decoder:
    return decoder("qwen3moe", layers=3, experts=6, initializer_range=0.1)


def public(folder: Path, texts: list[str], name: str) -> Path:
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(texts))
    (folder / "public.toml").write_text(f'name = "{name}"\nsource = "invented"\nlicence = "CC0"\n')
    return folder


@pytest.fixture(scope="module", autouse=True)
def _no_process() -> Iterator[None]:
    """Speed and memory are measured by tests/variants/test_check.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "probe", lambda *arguments: Probe(10.0, 1, 1000, None))
        yield


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A composed model of two owners, a key, and text to distil and to compare on."""
    folder = tmp_path_factory.mktemp("ground")
    save_composed(parent(), WORDS, OWNERS, folder / "parent")
    KEY.save(folder / "key")
    public(folder / "text", TEXTS * 6, "lessons")
    public(folder / "domain", TEXTS[:1], "cases")
    public(folder / "heldout", TEXTS[1:], "wards")
    return folder


def exported(ground: Path, out: Path, *options: object) -> Result:
    given = ("--tier", "cluster", "--bits", 32, "--public", ground / "text", *DENSE)
    return model("export", ground / "parent", *given, *options, "--out", out)


@pytest.fixture(scope="module")
def made(ground: Path, _no_process: None) -> Path:
    """A signed student of two layers, each of three experts."""
    shape = ("--width", 3 * 96, "--depth", 2, "--domain", ground / "domain")
    more = ("--heldout", ground / "heldout", "--key", ground / "key")
    result = exported(ground, ground / "made", *shape, *more, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == (ground / "made" / "variant.json").read_text()
    assert "distilling: 12/12" in result.stderr
    assert "that were held out: KL" in result.stderr
    return ground / "made"


def test_a_student_is_what_its_passport_says(made: Path, ground: Path) -> None:
    passport = read_passport(made)
    said = passport.distillation
    assert said is not None
    assert passport.parent_digest == said.teacher == model_digest(parent())
    assert (said.joined, len(said.layers), said.criterion) == (3, 2, "reap")
    assert said.settings == Distilling(steps=12, batch=4, sequence_length=16, learning_rate=3e-3)
    assert said.tokens == 12 * 4 * 16
    assert said.after.kl < said.before.kl
    assert (passport.contents.layers, passport.contents.experts) == (2, 1)
    assert [len(layer) for layer in passport.kept] == [3, 3]
    student, _ = load_model(made)
    assert student.config == parent().config.model_copy(
        update={"layers": 2, "experts": 1, "experts_per_token": 1, "expert_hidden_size": 3 * 96}
    )
    used = {text.name: text.use for text in passport.texts}
    assert used == {"wards": "held-out", "cases": "calibration", "lessons": "distillation"}
    digest = file_digest(ground / "text" / "a.txt")
    assert next(t.files for t in passport.texts if t.use == "distillation") == {"a.txt": digest}
    # The teacher held everybody's experts, whoever's were joined.
    assert {share.owner: share.experts for share in passport.owners} == {
        "public": 6, "court": 6, "ward": 6,
    }  # fmt: skip
    assert not (ground / "made.distilling").exists()


def test_its_card_says_the_same(made: Path) -> None:
    passport, card = read_passport(made), (made / "MODEL_CARD.md").read_text()
    said = passport.distillation
    assert said is not None
    layers = ", ".join(map(str, said.layers))
    for words in (
        f"a dense model of 2 layers (the parent's {layers}, counted from 0)",
        "3 of the parent's 6 experts of each in one: joined by router-weighted activation (REAP)",
        "on the public text 'cases', in the layers that change their input most on it",
        "12 steps (768 tokens)",
        f"| before | {said.before.kl:.4f} | {said.before.loss:.4f} |",
        f"| after | {said.after.kl:.4f} | {said.after.loss:.4f} |",
        "lessons (distillation): invented. Licence: CC0.",
        "court: 6 expert(s) over all layers of the teacher; trained without noise",
        "withdrawing one takes a new distillation",
    ):
        assert words in card


def test_transformers_computes_what_the_student_computes(made: Path) -> None:
    student, _ = load_model(made)
    runtime = KINDS["hf"].open(made, Opening(20, WORDS.begin_of_text_id, exact=True))
    ids = list(range(20, 38))
    with torch.no_grad():
        torch.testing.assert_close(
            runtime.logits(ids), student(torch.tensor([ids]))[0], rtol=0, atol=1e-4
        )
    runtime.close()


def test_it_is_verified_and_another_signer_is_not(made: Path) -> None:
    assert model("verify", made, "--signer", fingerprint(KEY.public_key)).exit_code == 0
    other = fingerprint(IdentityKey.from_bytes(bytes([1] * 32)).public_key)
    assert model("verify", made, "--signer", other).exit_code == 2


@pytest.mark.parametrize("container", ["gguf", "onnx"])
def test_other_containers_hold_students_too(
    container: str, ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in {"gguf": ("gguf",), "onnx": ("onnx", "onnxruntime")}[container]:
        pytest.importorskip(library)
    # Without llama.cpp the GGUF file is written and not run; with it, it must pass.
    result = exported(ground, tmp_path / "a", "--format", container, "--depth", 1)
    assert result.exit_code == 0, result.stderr
    passport = verify_artefact(tmp_path / "a")
    assert (passport.contents.experts, passport.contents.layers) == (1, 1)
    assert [len(layer) for layer in passport.kept] == [2]  # as many as a token uses


def test_a_killed_export_goes_on_to_the_same_bytes(
    made: Path, ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    shape = ("--width", 3 * 96, "--depth", 2, "--domain", ground / "domain")
    monkeypatch.setattr(variant_dense, "_SNAPSHOT_EVERY", 5)
    steps: list[int] = []
    train = variant_dense.distil

    def dying(*given: Any, **named: Any) -> Any:
        told = named["progress"]

        def progress(step: int, kl: float) -> None:
            steps.append(step)
            told(step, kl)
            if len(steps) == 7:
                raise KilledError

        return train(*given, **{**named, "progress": progress})

    monkeypatch.setattr(variant_dense, "distil", dying)
    with pytest.raises(KilledError):
        raise exported(ground, tmp_path / "a", *shape).exception or AssertionError
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "a.distilling").is_dir()
    result = exported(ground, tmp_path / "a", *shape)
    assert result.exit_code == 0, result.stderr
    assert steps == [*range(1, 8), *range(6, 13)]
    weights = "model.safetensors"
    assert file_digest(tmp_path / "a" / weights) == file_digest(made / weights)
    assert read_passport(tmp_path / "a").distillation == read_passport(made).distillation
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_fails_the_gate_keeps_its_distilled_weights(ground: Path, tmp_path: Path) -> None:
    heldout = ("--heldout", ground / "heldout")
    result = exported(ground, tmp_path / "a", *heldout, "--max-loss-rise", -100)
    assert result.exit_code == 2
    assert "none of 1 tried" in result.stderr
    assert "dense of 2 of 6 experts" in result.stderr
    assert f"kept in {tmp_path / 'a.distilling'}" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.distilling"]
    result = exported(ground, tmp_path / "a", *heldout)
    assert result.exit_code == 0, result.stderr
    assert "distilling: 12/12" not in result.stderr  # nothing was trained anew
    result = exported(ground, tmp_path / "b", "--distil-steps", 3)
    assert result.exit_code == 0, result.stderr
    assert read_passport(tmp_path / "b").distillation.tokens == 3 * 4 * 16  # type: ignore[union-attr]


def test_nothing_of_an_owner_who_is_left_out_teaches(ground: Path, tmp_path: Path) -> None:
    changed = parent()
    for block in changed.blocks:
        for weight in block.experts.parameters():
            weight.data[2:4] = 3.0  # the court's
    save_composed(changed, WORDS, OWNERS, tmp_path / "changed")
    owner = ("--owner", "ward", "--width", 4 * 96)
    given = ("--tier", "cluster", "--bits", 32, "--public", ground / "text", *DENSE, *owner)
    for name, folder in (("a", ground / "parent"), ("b", tmp_path / "changed")):
        result = model("export", folder, *given, "--out", tmp_path / name)
        assert result.exit_code == 0, result.stderr
    first, second = (tmp_path / name / "model.safetensors" for name in ("a", "b"))
    assert file_digest(first) == file_digest(second)
    passport = read_passport(tmp_path / "a")
    assert {share.owner for share in passport.owners} == {"public", "ward"}
    assert passport.kept == ((0, 1, 4, 5),) * 3
    teacher = prune(parent(), ((0, 1, 4, 5),) * 3)
    assert passport.distillation.teacher == model_digest(teacher)  # type: ignore[union-attr]


def test_a_limit_takes_a_narrower_student(ground: Path, tmp_path: Path) -> None:
    def planned(*options: object) -> dict[str, Any]:
        result = exported(ground, tmp_path / "a", *options, "--dry-run", "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)  # type: ignore[no-any-return]

    usual = planned()
    assert usual["distillation"]["width"] == 2 * 96
    limit = usual["plans"][0]["file_bytes"] - 1
    narrow = planned("--max-bytes", limit)
    assert narrow["distillation"]["width"] == 96
    assert narrow["plans"][0]["file_bytes"] <= limit
    assert (narrow["plans"][0]["experts"], narrow["plans"][0]["joined"]) == (1, 1)
    facts = usual["distillation"]
    assert (facts["steps"], facts["tokens"]) == (12, 768)
    shape = parent().config.model_copy(
        update={"experts": 1, "experts_per_token": 1, "expert_hidden_size": 2 * 96}
    )
    assert facts["flops"] == training_flops(parent().config, shape, 768)
    said = exported(ground, tmp_path / "a", "--dry-run").stdout
    assert "Distillation: 12 steps, 768 tokens" in said
    assert "into 3 of 3 layers of width 192." in said
    assert not list(tmp_path.iterdir())


PUBLIC = ("--public", "TEXT")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--width", 96), "Expected --dense with --width, --depth"),
        (("--depth", 1), "Expected --dense with --width, --depth"),
        (("--distil-steps", 5), "Expected --dense with --width, --depth"),
        (PUBLIC, "Expected --dense and --public together"),
        (("--dense",), "Expected --dense and --public together"),
        (("--dense", *PUBLIC, "--experts", 2, "--domain", "TEXT"), "--dense without --experts"),
        (("--dense", *PUBLIC, "--merge", "--domain", "TEXT"), "--dense without --merge"),
        (("--dense", *PUBLIC, *STEPS, "--width", 100), "a multiple of the experts' width 96"),
        (("--dense", *PUBLIC, *STEPS, "--width", 7 * 96), "up to 6 experts (576), got 672"),
        (("--dense", *PUBLIC, *STEPS, "--depth", 4), "Expected 1 to 3 layers to keep, got 4"),
        (("--dense", *PUBLIC, *STEPS, "--heldout", "TEXT"), "not trained on, got a file of"),
        (("--dense", *PUBLIC, *STEPS, "--owner", "clinic"), "among court, public, ward"),
        (("--dense", "--public", "SHORT", *STEPS), "Expected at least 340 tokens of public text"),
        (("--dense", "--public", "PARENT", *STEPS), "Expected public.toml in it"),
        (("--dense", "--public", "PRIVATE", *STEPS), "'patient' names whose data"),
        (("--dense", *PUBLIC, "--domain", "PRIVATE", *STEPS), "'patient' names whose data"),
        (("--dense", *PUBLIC, "--distil-length", 129), "at most 128 tokens"),
        (("--dense", *PUBLIC, *STEPS, "--max-bytes", 10), "dense of 1 of 6 experts as the nearest"),
    ],
)  # fmt: skip
def test_mistakes_end_before_anything_is_written(
    options: tuple[object, ...], said: str, ground: Path, tmp_path: Path
) -> None:
    private = tmp_path / "private"
    shutil.copytree(ground / "text", private)
    (private / "data.toml").write_text('text_fields = ["text"]\nunit_field = "patient"\n')
    named = {
        "TEXT": ground / "text", "SHORT": ground / "domain", "PARENT": ground / "parent",
        "PRIVATE": private,
    }  # fmt: skip
    given = [named.get(str(each), each) for each in options]
    result = model(
        "export", ground / "parent", "--tier", "cluster", *given, "--out", tmp_path / "x"
    )
    assert result.exit_code == 2, result.stdout
    assert said in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["private"]


# What a predicate says that was signed before there were students.
SIGNED_BEFORE = {
    "format", "tier", "container", "number_format", "parent", "parent_digest", "parent_experts",
    "kept", "chosen_by", "contents", "owners", "texts", "ledger", "verification", "file_bytes",
    "notes",
}  # fmt: skip


@pytest.fixture
def old(ground: Path, tmp_path: Path) -> Path:
    """An artefact as it was signed before there were students: nothing names a distillation."""
    save_model(decoder("qwen3"), WORDS, tmp_path / "plain")
    sparse = ("--tier", "cluster", "--key", ground / "key", "--out", tmp_path / "old")
    assert model("export", tmp_path / "plain", *sparse).exit_code == 0
    said = json.loads((tmp_path / "old" / "variant.json").read_text())
    said.pop("distillation", None)
    sign(tmp_path / "old", said)
    return tmp_path / "old"


def sign(folder: Path, said: dict[str, Any]) -> None:
    (folder / "variant.json").write_text(json.dumps(said, indent=2) + "\n")
    files = {**said["files"], "variant.json": file_digest(folder / "variant.json")}
    predicate = {name: value for name, value in said.items() if name != "files"}
    (folder / "variant.intoto.json").write_bytes(attest(KEY, files, PREDICATE, predicate))


def changed(folder: Path, **values: object) -> None:
    path = folder / "variant.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}, indent=2) + "\n")


def test_what_was_signed_before_there_were_students_still_holds(old: Path) -> None:
    said = json.loads((old / "variant.json").read_text())
    assert said.keys() - {"files"} == SIGNED_BEFORE
    result = model("verify", old)
    assert result.exit_code == 0, result.stderr
    assert read_passport(old).model_dump(mode="json").keys() - {"files"} == SIGNED_BEFORE


def test_a_distillation_that_is_added_after_signing_is_seen(old: Path, made: Path) -> None:
    taught = json.loads((made / "variant.json").read_text())["distillation"]
    changed(old, distillation=None)
    result = model("verify", old)
    assert result.exit_code == 2
    assert "a statement about this artefact" in result.stderr
    changed(old, distillation={**taught, "joined": 1, "layers": [0, 1]})
    verify_artefact(old)  # the model has one expert: it could have been distilled
    result = model("verify", old)
    assert result.exit_code == 2
    assert "a statement about this artefact" in result.stderr


def test_a_distillation_that_is_removed_or_changed_after_signing_is_seen(
    ground: Path, tmp_path: Path
) -> None:
    """Of a student of one expert, whose passport holds together without the field too."""
    more = ("--width", 96, "--key", ground / "key")
    assert exported(ground, tmp_path / "a", *more).exit_code == 0
    said = json.loads((tmp_path / "a" / "variant.json").read_text())
    nearer = {**said["distillation"], "after": {"kl": 0.0, "loss": 1.0}}
    for other in (
        {**said, "distillation": nearer},
        {k: v for k, v in said.items() if k != "distillation"},
    ):
        (tmp_path / "a" / "variant.json").write_text(json.dumps(other, indent=2) + "\n")
        verify_artefact(tmp_path / "a")
        result = model("verify", tmp_path / "a")
        assert result.exit_code == 2
        assert "a statement about this artefact" in result.stderr
    sign(tmp_path / "a", said)
    assert model("verify", tmp_path / "a").exit_code == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda said: {"kept": said["kept"][:1]}, "3 experts of each of 2 layers"),
        (lambda said: {"kept": [[0, 1], [0, 1]]}, "3 experts of each of 2 layers"),
        (lambda said: {"distillation": {**said["distillation"], "layers": [0, 1, 2]}},
         "one expert per layer and 3 layers"),
        (lambda said: {"contents": {**said["contents"], "experts": 3}}, "got 3 experts"),
        (lambda said: {"contents": {**said["contents"], "layers": 3}, "kept": [[0, 1, 2]] * 3},
         "one expert per layer and 2 layers"),
        (lambda said: {"distillation": None}, "1 experts of each of 2 layers"),
    ],
)  # fmt: skip
def test_a_passport_of_another_shape_is_seen_even_where_nobody_signed(
    change: Any, said: str, made: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "a"))
    (folder / "variant.intoto.json").unlink()
    changed(folder, **change(json.loads((folder / "variant.json").read_text())))
    with pytest.raises(VariantError, match=said):
        verify_artefact(folder)
