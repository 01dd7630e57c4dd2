"""A student's passport holds what was signed before there were students, and shows every change."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from arion.variant_publication import PREDICATE
from models.checkpoint import save_model
from models.durable import file_digest
from models.variants.extras import VariantError
from models.variants.passport import read_passport, verify_artefact
from privacy.attestation import attest
from tests.variants.artefacts import KEY, model
from tests.variants.models import decoder
from tests.variants.students import WORDS, _unmeasured, exported, ground, made

__all__ = ["_unmeasured", "ground", "made"]  # fixtures

pytest.importorskip("transformers")
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
