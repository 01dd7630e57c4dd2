"""Modular folders: nothing is ever rewritten, and a crash leaves the old state or the new one."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from models.checkpoint import model_digest, save_model
from models.composition import compose, read_ownership
from models.config import ModelConfig
from models.decoder import Decoder
from models.durable import BusyError, file_digest
from models.expert_module import NOT_PRIVATE, Facts, card_path, write_module
from models.modular import (
    add,
    compose_folder,
    create,
    load_base,
    load_modules,
    read_manifest,
    withdraw,
)
from models.owned import OwnedError, banks, branch, owned_tensors
from models.tokenizer import Tokenizer

CONFIG = ModelConfig(
    vocab_size=300, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, experts=4,
    experts_per_token=2, expert_hidden_size=24, max_positions=64, initializer_range=0.2,
)  # fmt: skip


class CrashError(Exception):
    """The machine stops here."""


@contextmanager
def crash_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Stop before the step-th change of the disk."""
    taken: list[str] = []

    def counted(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            if len(taken) == step:
                raise CrashError(name)
            taken.append(name)
            return original(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for owner, name in (
            (os, "fsync"), (shutil, "copyfile"), (Path, "write_bytes"), (Path, "replace"),
            (Path, "unlink"), (Path, "rmdir"), (Path, "mkdir"),
        ):  # fmt: skip
            patch.setattr(owner, name, counted(name, getattr(owner, name)))
        yield taken


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): file_digest(path) for path in files}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "m"
    model = Decoder(CONFIG, torch.Generator().manual_seed(1))
    save_model(model, Tokenizer.train(["a few words"] * 3, 300), folder)
    return folder


@pytest.fixture(scope="module")
def modules(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, paths = tmp_path_factory.mktemp("modules"), {}
    for seed, owner in enumerate(("hospital", "bank", "court")):
        model = Decoder(CONFIG, torch.Generator().manual_seed(1))
        digest = model_digest(model)
        branch(model, (seed,), train_rows=True)
        for bank in banks(model):
            bank.down.weight.data.normal_(generator=torch.Generator().manual_seed(seed))
        facts = Facts(
            owner=owner, data="Text.", licence="Any.", privacy=NOT_PRIVATE,
            base_digest=digest, sources=(seed,), recipe={},
        )  # fmt: skip
        paths[owner] = write_module(folder, owned_tensors(model), facts)
    return paths


@pytest.fixture
def folder(base: Path, modules: dict[str, Path], tmp_path: Path) -> Path:
    create(tmp_path / "modular", base)
    for path in modules.values():
        add(tmp_path / "modular", path)
    return tmp_path / "modular"


def test_adding_rewrites_nothing(base: Path, modules: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "modular"
    create(folder, base)
    assert digests(folder / "base") == digests(base)
    for owner, path in modules.items():
        before = digests(folder)
        add(folder, path)
        after = digests(folder)
        new = {f"experts/{owner}/{path.name}", f"experts/{owner}/{card_path(path).name}"}
        assert set(after) - set(before) == new
        assert {name for name in before if before[name] != after[name]} == {"modular.json"}
        assert after[f"experts/{owner}/{path.name}"] == path.stem
    manifest = read_manifest(folder)
    assert [entry.owner for entry in manifest.modules] == ["bank", "court", "hospital"]
    assert manifest.base_digest == model_digest(load_base(folder)[0])


def test_any_subset_is_composed(folder: Path, tmp_path: Path) -> None:
    model = load_base(folder)[0]
    everyone = load_modules(folder, model)
    for owners in ([], ["court"], ["hospital", "bank"], None):
        out = tmp_path / f"out-{owners}"
        found = compose_folder(folder, out, owners)
        wanted = [m for m in everyone if owners is None or m.card.owner in owners]
        assert model_digest(found) == model_digest(compose(model, wanted))
        shares = read_ownership(out).shares
        assert [s.owner for s in shares] == ["public", *sorted(m.card.owner for m in wanted)]


def test_withdrawal_leaves_every_other_byte(folder: Path, modules: dict[str, Path]) -> None:
    before = digests(folder)
    receipt = withdraw(folder, "court")
    after = digests(folder)
    assert receipt.weights_digest == modules["court"].stem
    assert {name for name in before if name not in after} == {
        name for name in before if name.startswith("experts/court/")
    }
    assert {n for n in after if before.get(n) != after[n]} == {"modular.json"}
    assert not (folder / "experts" / "court").exists()
    assert [m.card.owner for m in load_modules(folder, load_base(folder)[0])] == [
        "bank",
        "hospital",
    ]
    with pytest.raises(OwnedError, match="court"):
        withdraw(folder, "court")
    add(folder, modules["court"])
    assert digests(folder) == before


def test_a_withdrawal_that_crashes_leaves_the_old_state_or_the_new(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "whole")
    with crash_at(-1, monkeypatch) as steps:
        removed = withdraw(tmp_path / "whole", "court")
    expected, states = digests(tmp_path / "whole"), []
    assert len(steps) > 8
    for step in range(len(steps)):
        copy = tmp_path / f"step-{step}"
        shutil.copytree(folder, copy)
        with pytest.raises(CrashError), crash_at(step, monkeypatch):
            withdraw(copy, "court")
        owners = [m.card.owner for m in load_modules(copy, load_base(copy)[0])]
        assert owners in (["bank", "court", "hospital"], ["bank", "hospital"])
        states.append(len(owners))
        if "court" in owners or read_manifest(copy).leaving:
            assert withdraw(copy, "court") == removed
        else:
            with pytest.raises(OwnedError, match="court"):
                withdraw(copy, "court")
        left = digests(copy)
        left.pop("modular.json.part", None)
        assert left == expected
    assert states == sorted(states, reverse=True)
    assert set(states) == {2, 3}


def test_an_addition_that_crashes_leaves_the_old_state_or_the_new(
    base: Path, modules: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(tmp_path / "m", base)
    add(tmp_path / "m", modules["bank"])
    shutil.copytree(tmp_path / "m", tmp_path / "whole")
    with crash_at(-1, monkeypatch) as steps:
        add(tmp_path / "whole", modules["court"])
    expected = digests(tmp_path / "whole")
    for step in range(len(steps)):
        copy = tmp_path / f"step-{step}"
        shutil.copytree(tmp_path / "m", copy)
        with pytest.raises(CrashError), crash_at(step, monkeypatch):
            add(copy, modules["court"])
        owners = [m.card.owner for m in load_modules(copy, load_base(copy)[0])]
        if owners == ["bank"]:
            add(copy, modules["court"])
        else:
            assert owners == ["bank", "court"]
        assert {n: d for n, d in digests(copy).items() if not n.endswith(".part")} == expected


def test_a_folder_that_crashes_in_the_making_is_not_there(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with crash_at(-1, monkeypatch) as steps:
        create(tmp_path / "whole", base)
    for step in range(len(steps) - 1):  # the last step makes the name durable
        with pytest.raises(CrashError), crash_at(step, monkeypatch):
            create(tmp_path / "m", base)
        assert not (tmp_path / "m").exists()
    create(tmp_path / "m", base)
    assert digests(tmp_path / "m") == digests(tmp_path / "whole")


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda f, m: (f / "modular.json").unlink(), "modular.json"),
        (lambda f, m: _edit(f / "modular.json", format=2), "format"),
        (lambda f, m: (f / "base" / "config.json").write_text("{}"), "config.json"),
        (lambda f, m: (f / "base" / "more.txt").write_text(""), "more.txt"),
        (lambda f, m: (f / "base" / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda f, m: (f / "experts" / "bank" / m["bank"].name).unlink(), "got none"),
        (lambda f, m: shutil.copy(m["court"], f / "experts" / "bank" / m["bank"].name), "digest"),
        (lambda f, m: _edit(card_path(f / "experts" / "bank" / m["bank"].name), data="x"), "card"),
    ],
)  # fmt: skip
def test_a_changed_folder_is_a_clear_error(
    damage, text: str, folder: Path, modules: dict[str, Path], tmp_path: Path
) -> None:
    damage(folder, modules)
    with pytest.raises(OwnedError, match=text):
        compose_folder(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_does_not_belong_is_refused(
    folder: Path, base: Path, modules: dict[str, Path], tmp_path: Path
) -> None:
    before = digests(folder)
    with pytest.raises(OwnedError, match="has one"):
        add(folder, modules["bank"])
    with pytest.raises(OwnedError, match="yet"):
        create(folder, base)
    with pytest.raises(OwnedError, match="clinic"):
        compose_folder(folder, tmp_path / "out", ["clinic"])
    compose_folder(folder, tmp_path / "out")
    with pytest.raises(OwnedError, match="no owners"):
        create(tmp_path / "again", tmp_path / "out")
    other = Decoder(CONFIG, torch.Generator().manual_seed(2))
    save_model(other, Tokenizer.train(["a few words"] * 3, 300), tmp_path / "other")
    create(tmp_path / "elsewhere", tmp_path / "other")
    with pytest.raises(OwnedError, match="base"):
        add(tmp_path / "elsewhere", modules["bank"])
    assert digests(folder) == before


def test_two_writers_at_once_are_refused(folder: Path, modules: dict[str, Path]) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(BusyError, match="writer"):
        withdraw(folder, "bank")
    os.close(descriptor)
    withdraw(folder, "bank")
