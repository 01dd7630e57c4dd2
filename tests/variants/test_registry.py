"""A registry: what it takes in, gives out and never gives out again, whole after a crash."""

import json
import shutil
from pathlib import Path

import pytest

from models.checkpoint import save_model
from models.durable import BusyError, only_writer
from models.variants.extras import VariantError
from models.variants.index import RegistryError, Version, artefact_path, read_index
from models.variants.registry import (
    add_artefact,
    add_version,
    create_registry,
    fetch,
    revoke,
)
from tests.variants.models import decoder, tokenizer
from tests.variants.test_export import model

pytest.importorskip("gguf")
pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two artefacts that no runtime was asked about."""
    folder = tmp_path_factory.mktemp("made")
    save_model(decoder("qwen3"), tokenizer(), folder / "parent")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "onnxruntime", None)
        for name, bits in (("a", 32), ("b", 8)):
            options = ("--tier", "mobile", "--format", "onnx", "--bits", bits)
            result = model("export", folder / "parent", *options, "--out", folder / name)
            assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    create_registry(tmp_path / "registry")
    return tmp_path / "registry"


def test_an_artefact_comes_out_as_it_went_in(registry: Path, made: Path, tmp_path: Path) -> None:
    entry = add_artefact(registry, made / "a")
    assert add_artefact(registry, made / "a") == entry  # twice changes nothing
    other = add_artefact(registry, made / "b")
    assert [each.digest for each in read_index(registry).active()] == [entry.digest, other.digest]
    assert len(read_index(registry).versions) == 1  # both of one model
    assert fetch(registry, entry.digest[:10], tmp_path / "out", lambda folder: None) == entry
    files = {path.name: path.read_bytes() for path in (made / "a").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files


def test_a_revoked_artefact_is_gone_and_stays_so(
    registry: Path, made: Path, tmp_path: Path
) -> None:
    entry, other = (add_artefact(registry, made / name) for name in "ab")
    revoke(registry, {entry.digest: other.digest}, "a reason")
    assert not artefact_path(registry, entry.digest).exists()
    with pytest.raises(RegistryError, match=f"a reason. Take {other.digest[:12]}"):
        fetch(registry, entry.digest, tmp_path / "out", lambda folder: None)
    with pytest.raises(RegistryError, match="which was revoked: a reason"):
        add_artefact(registry, made / "a")
    revoke(registry, {entry.digest: None}, "a reason")  # again: the replacement stays named
    assert read_index(registry).artefacts[0].replaced_by == other.digest
    assert fetch(registry, other.digest, tmp_path / "out", lambda folder: None) == other


def test_what_a_crash_left_is_swept_by_the_next_change(registry: Path, made: Path) -> None:
    entry = add_artefact(registry, made / "a")
    shutil.copytree(made / "b", registry / "artefacts" / ("f" * 64))
    (registry / "artefacts" / "x.part").mkdir()
    revoke(registry, {}, "nothing")
    assert [path.name for path in (registry / "artefacts").iterdir()] == [entry.digest]


def test_damage_in_the_registry_is_not_handed_out(
    registry: Path, made: Path, tmp_path: Path
) -> None:
    entry, other = (add_artefact(registry, made / name) for name in "ab")
    card = artefact_path(registry, entry.digest) / "MODEL_CARD.md"
    card.write_text("other words")
    with pytest.raises(VariantError, match="MODEL_CARD"):
        fetch(registry, entry.digest, tmp_path / "out", lambda folder: None)
    shutil.rmtree(artefact_path(registry, entry.digest))
    shutil.copytree(artefact_path(registry, other.digest), artefact_path(registry, entry.digest))
    with pytest.raises(VariantError, match="Expected the passport"):
        fetch(registry, entry.digest, tmp_path / "out", lambda folder: None)
    assert not (tmp_path / "out").exists()


def test_a_damaged_artefact_is_not_taken_in(registry: Path, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "a", tmp_path / "copy")
    (tmp_path / "copy" / "model.onnx.data").write_bytes(b"")
    with pytest.raises(VariantError, match=r"model\.onnx\.data"):
        add_artefact(registry, tmp_path / "copy")
    assert not list((registry / "artefacts").iterdir())


def test_lineage_has_no_unknown_origin(registry: Path, made: Path) -> None:
    version = add_artefact(registry, made / "a").version
    add_version(registry, Version(digest="1" * 64, name="m", derived_from=version, because="why"))
    assert read_index(registry).versions[1].derived_from == version
    unknown = Version(digest="2" * 64, name="m", derived_from="3" * 64, because="why")
    with pytest.raises(RegistryError, match="origin"):
        add_version(registry, unknown)


@pytest.mark.parametrize("content", ["", "{}x", '{"format": 2}', '{"versions": [{}]}'])
def test_an_index_that_is_none_is_refused(content: str, registry: Path) -> None:
    (registry / "registry.json").write_text(content)
    with pytest.raises(RegistryError, match="registry's index"):
        read_index(registry)


def test_an_index_that_contradicts_itself_is_refused(registry: Path, made: Path) -> None:
    add_artefact(registry, made / "a")
    path = registry / "registry.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "versions": []}))
    with pytest.raises(RegistryError, match="every artefact's version"):
        read_index(registry)


def test_mistakes_are_one_line(registry: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="Expected no"):
        create_registry(registry)
    with pytest.raises(RegistryError, match=r"registry\.json"):
        read_index(made)
    with pytest.raises(RegistryError, match="which 0 have"):
        fetch(registry, "abc", tmp_path / "out", lambda folder: None)
    with pytest.raises(RegistryError, match="artefacts of this registry"):
        revoke(registry, {"1" * 64: None}, "why")
    with only_writer(registry), pytest.raises(BusyError, match="no other writer"):
        add_artefact(registry, made / "a")
