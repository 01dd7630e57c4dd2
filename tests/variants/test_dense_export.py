"""`arion model export --dense`: from a model to a student that passes, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from arion import variant_dense
from models.checkpoint import load_model, model_digest
from models.composition import save_composed
from models.durable import file_digest
from models.variants.distil import Distilling, training_flops
from models.variants.experts import prune
from models.variants.kinds import KINDS, Opening
from models.variants.passport import read_passport, verify_artefact
from privacy.identity import IdentityKey, fingerprint
from tests.variants.artefacts import KEY, OWNERS, model
from tests.variants.students import DENSE, STEPS, WORDS, _unmeasured, exported, ground, made, parent

__all__ = ["_unmeasured", "ground", "made"]  # fixtures

pytest.importorskip("transformers")


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


@pytest.mark.parametrize(("rate", "is_worse"), [(0.3, True), (3e-3, False)])
def test_a_student_that_training_made_worse_is_remarked(
    rate: float, is_worse: bool, ground: Path, tmp_path: Path
) -> None:
    shape = ("--width", 3 * 96, "--depth", 2, "--domain", ground / "domain")
    result = exported(ground, tmp_path / "a", *shape, "--distil-rate", rate)
    assert result.exit_code == 0, result.stderr
    said = read_passport(tmp_path / "a").distillation
    assert said is not None
    assert (said.after.kl > said.before.kl) == is_worse
    assert ("made the student worse" in result.stderr) == is_worse


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


def test_layers_are_watched_where_some_are_left_out_and_progress_says_so(
    ground: Path, tmp_path: Path
) -> None:
    whole = exported(ground, tmp_path / "a", "--dry-run")
    shallow = exported(ground, tmp_path / "a", "--dry-run", "--depth", "2")
    assert ("watching experts" in whole.stderr, "watching layers" in whole.stderr) == (True, False)
    assert "watching experts" in shallow.stderr
    assert "watching layers" in shallow.stderr


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
