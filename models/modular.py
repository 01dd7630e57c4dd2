"""Modular models: a base and any number of owners' modules in one folder, none ever rewritten.

    base/                         a model folder, as it was given
    experts/<owner>/<digest>.*    each owner's module and card, as they were given
    modular.json                  which of them belong, with digests: replacing it is the one step
                                  by which a module is in or out

A module that the manifest does not name is not part of the model, whatever lies in `experts/`. A
withdrawal first replaces the manifest, which then names the module as leaving, next removes the
files, and last forgets the module: a crash leaves the old state or the new one, and the next change
of the folder finishes what was begun.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from models.checkpoint import load_model, model_digest
from models.composition import SIDECAR, compose, ownership, save_composed
from models.decoder import Decoder
from models.durable import file_digest, only_writer, put, sync, write_whole
from models.expert_module import (
    Card,
    ExpertModule,
    card_path,
    read_card,
    read_module,
)
from models.faults import first_fault
from models.names import Digest, OwnerName
from models.owned import OwnedError
from models.tokenizer import Tokenizer

MANIFEST = "modular.json"


class ModuleEntry(BaseModel):
    """One owner's module: digests of its two files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: OwnerName
    weights_digest: Digest
    card_digest: Digest


class Manifest(BaseModel):
    """What belongs to a modular model.

    Attributes:
        base_digest: `model_digest` of the base. base_files: SHA-256 of each of its files.
        modules: at most one per owner, in order of owner.
        leaving: withdrawn modules whose files are yet to be removed.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    base_digest: Digest
    base_files: dict[str, Digest]
    modules: tuple[ModuleEntry, ...] = ()
    leaving: tuple[ModuleEntry, ...] = ()


def is_modular(folder: Path) -> bool:
    """Tell whether a folder is a modular model."""
    return (folder / MANIFEST).is_file()


def create(folder: Path, base: Path) -> Manifest:
    """Make a modular model of a base alone; `folder` appears whole or not at all.

    Args:
        base: a model folder; its files are copied as they are.

    Raises:
        OwnedError: `folder` exists, or experts of the base have owners already.
        CheckpointError: the base is no readable model folder.

    """
    if folder.exists():
        raise OwnedError(f"Expected no {folder} yet, got one. Choose another place.")
    if (base / SIDECAR).exists():
        raise OwnedError(
            f"Expected a base whose experts have no owners, got the composed model {base}. Start "
            "from its base and add the modules."
        )
    digest = model_digest(load_model(base)[0])
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "base").mkdir(parents=True)
    for file in sorted(path for path in base.iterdir() if path.is_file()):
        shutil.copyfile(file, part / "base" / file.name)
        sync(part / "base" / file.name)
    sync(part / "base")
    files = {path.name: file_digest(path) for path in sorted((part / "base").iterdir())}
    manifest = Manifest(base_digest=digest, base_files=files)
    _save(part, manifest)
    put(part, folder)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read what belongs to a modular model; no file is checked.

    Raises:
        OwnedError: no manifest, or one that is not one.

    """
    path = folder / MANIFEST
    if not path.is_file():
        raise OwnedError(
            f"Expected {MANIFEST} in {folder}, got none. Point at a modular model, or make one "
            "with `arion model expert add FOLDER --base BASE`."
        )
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise OwnedError(
            f"Expected a manifest at {path}, got {first_fault(error)}. Restore the file."
        ) from error


def read_cards(folder: Path) -> list[Card]:
    """Read the cards of all modules that belong, in order of owner; no weight is read.

    Raises:
        OwnedError: no manifest, or a card that is missing or not one.

    """
    return [read_card(_weights(folder, entry)) for entry in read_manifest(folder).modules]


def load_base(folder: Path) -> tuple[Decoder, Tokenizer]:
    """Read a modular model's base and its tokenizer, after checking their bytes.

    Raises:
        OwnedError: a file of the base is missing, changed or surplus.

    """
    manifest = read_manifest(folder)
    found = {path.name: file_digest(path) for path in sorted((folder / "base").iterdir())}
    if found != manifest.base_files:
        names = sorted(dict(found.items() ^ manifest.base_files.items()))
        raise OwnedError(
            f"Expected the base's files as {MANIFEST} names them, got others: {names[:3]}. "
            "Restore the base from where it came."
        )
    return load_model(folder / "base")


def load_modules(
    folder: Path, base: Decoder, owners: Sequence[str] | None = None
) -> list[ExpertModule]:
    """Read and check the modules of some owners, or of all.

    Raises:
        OwnedError: an owner without a module here, or a module that is not as it was added.

    """
    manifest = read_manifest(folder)
    entries = {entry.owner: entry for entry in manifest.modules}
    chosen = list(entries) if owners is None else list(owners)
    if unknown := sorted(set(chosen) - set(entries)):
        raise OwnedError(
            f"Expected owners among {', '.join(entries) or 'none'}, got {', '.join(unknown)}. "
            "`arion model expert list` shows who is in."
        )
    modules = []
    for owner in chosen:
        weights = _weights(folder, entries[owner])
        module = read_module(weights, base.config, manifest.base_digest)
        if file_digest(card_path(weights)) != entries[owner].card_digest:
            raise OwnedError(
                f"Expected the card of {owner!r} as it was added, got a changed one. Restore it."
            )
        modules.append(module)
    return modules


def add(folder: Path, weights: Path) -> ModuleEntry:
    """Add an owner's module: its two files are copied, then the manifest names them.

    Raises:
        OwnedError: the module is damaged or of another base, or its owner has one already.

    """
    with _changing(folder) as found:
        manifest = _finish_leaving(folder, found)
        module = read_module(weights, load_base(folder)[0].config, manifest.base_digest)
        owner = module.card.owner
        if owner in {entry.owner for entry in manifest.modules}:
            raise OwnedError(
                f"Expected an owner without a module in {folder}, got {owner!r}, who has one. "
                "Withdraw it first."
            )
        digests = module.card.weights_digest, file_digest(card_path(weights))
        entry = ModuleEntry(owner=owner, weights_digest=digests[0], card_digest=digests[1])
        place = _weights(folder, entry)
        place.parent.mkdir(parents=True, exist_ok=True)
        for source, target in ((weights, place), (card_path(weights), card_path(place))):
            part = target.with_name(target.name + ".part")
            shutil.copyfile(source, part)
            put(part, target)
        for directory in (place.parent.parent, folder):
            sync(directory)
        entries = sorted((*manifest.modules, entry), key=lambda each: each.owner)
        _save(folder, manifest.model_copy(update={"modules": tuple(entries)}))
    return entry


def withdraw(folder: Path, owner: str) -> ModuleEntry:
    """Remove an owner's module; every other file stays as it is, byte for byte.

    Returns:
        What was removed. After a crash the same call finishes and returns the same.

    Raises:
        OwnedError: the owner has no module here.

    """
    with _changing(folder) as manifest:
        known = (*manifest.modules, *manifest.leaving)
        entry = next((entry for entry in known if entry.owner == owner), None)
        if entry is None:
            raise OwnedError(
                f"Expected an owner with a module in {folder}, got {owner!r}. `arion model expert "
                "list` shows who is in."
            )
        rest = tuple(other for other in manifest.modules if other != entry)
        leaving = (*(other for other in manifest.leaving if other != entry), entry)
        left = manifest.model_copy(update={"modules": rest, "leaving": leaving})
        _save(folder, left)
        _finish_leaving(folder, left)
    return entry


def compose_folder(
    folder: Path,
    out: Path,
    owners: Sequence[str] | None = None,
    experts_per_token: int | None = None,
) -> Decoder:
    """Write the base and some owners' modules, or all, as one ordinary model folder.

    Raises:
        OwnedError: anything is not as the manifest says, or there is something at `out`.

    """
    base, tokenizer = load_base(folder)
    modules = load_modules(folder, base, owners)
    composed = compose(base, modules, experts_per_token)
    digest = read_manifest(folder).base_digest
    save_composed(composed, tokenizer, ownership(base, digest, modules), out)
    return composed


@contextmanager
def _changing(folder: Path) -> Iterator[Manifest]:
    """Hold the folder against other writers."""
    read_manifest(folder)  # is it one at all?
    with only_writer(folder):
        yield read_manifest(folder)


def _finish_leaving(folder: Path, manifest: Manifest) -> Manifest:
    for entry in manifest.leaving:
        place = folder / "experts" / entry.owner
        for path in sorted(place.iterdir()) if place.exists() else ():
            path.unlink()
        if place.exists():
            sync(place)
            place.rmdir()
            sync(place.parent)
    if not manifest.leaving:
        return manifest
    done = manifest.model_copy(update={"leaving": ()})
    _save(folder, done)
    return done


def _weights(folder: Path, entry: ModuleEntry) -> Path:
    return folder / "experts" / entry.owner / f"{entry.weights_digest}.safetensors"


def _save(folder: Path, manifest: Manifest) -> None:
    write_whole(folder / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())
