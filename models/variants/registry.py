"""A registry: a folder of versions, where each came from, and the artefacts made of them.

    registry.json             the index; replacing it is the one step by which anything changes
    artefacts/<digest>/       each artefact's folder as `arion model export` wrote it, named by the
                              SHA-256 of its passport

What the index does not call active is not there: a revoked artefact's files are removed after the
index says so, and the next change of the registry finishes what a crash left.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from models.durable import file_digest, only_writer, put, sync, write_whole
from models.expert_module import Digest, OwnerName, Statement
from models.variants.extras import VariantError
from models.variants.kinds import Container, files_of
from models.variants.passport import PASSPORT, Passport, read_passport, verify_artefact

_INDEX, _ARTEFACTS = "registry.json", "artefacts"
_SHOWN = 12  # digits of a digest that tell artefacts apart in messages


class RegistryError(VariantError):
    """A registry that cannot be read or changed as asked."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Version(_Frozen):
    """A model that artefacts are made of.

    Attributes:
        digest: `model_digest`. derived_from: the version before it. because: how it came about.

    """

    digest: Digest
    name: str
    derived_from: Digest | None = None
    because: Statement


class Entry(_Frozen):
    """An artefact.

    Attributes:
        digest: SHA-256 of its passport. version: digest of the model it was made of.
        owners: whose experts are inside. because: why it was revoked. replaced_by: by which.

    """

    digest: Digest
    version: Digest
    owners: tuple[OwnerName, ...]
    tier: str
    container: Container
    number_format: str
    experts: int
    file_bytes: int
    status: Literal["active", "revoked"] = "active"
    because: str | None = None
    replaced_by: Digest | None = None

    @property
    def is_active(self) -> bool:
        """Whether it may be fetched."""
        return self.status == "active"


class Index(_Frozen):
    """Everything that a registry knows."""

    format: Literal[1] = 1
    versions: tuple[Version, ...] = ()
    artefacts: tuple[Entry, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "Index":
        versions, artefacts = (
            {each.digest for each in part} for part in (self.versions, self.artefacts)
        )
        if len(versions) != len(self.versions) or len(artefacts) != len(self.artefacts):
            raise ValueError("every version and every artefact stands there once")
        if {each.version for each in self.artefacts} - versions:
            raise ValueError("every artefact's version stands there")
        if {each.derived_from for each in self.versions} - {None} - versions:
            raise ValueError("every version's origin stands there")
        return self

    def active(self) -> Iterator[Entry]:
        """Yield what may be fetched."""
        return (entry for entry in self.artefacts if entry.is_active)


def create_registry(folder: Path) -> None:
    """Make an empty registry.

    Raises:
        RegistryError: there is something at `folder`.

    """
    if folder.exists():
        raise RegistryError(f"Expected no {folder} yet, got one. Choose another place.")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / _ARTEFACTS).mkdir(parents=True)
    _save(part, Index())
    put(part, folder)


def read_index(folder: Path) -> Index:
    """Read a registry's index; no artefact is looked at.

    Raises:
        RegistryError: none there, or not one.

    """
    path = folder / _INDEX
    if not path.is_file():
        raise RegistryError(
            f"Expected {_INDEX} in {folder}, got none. Make a registry with `arion model registry "
            "create`."
        )
    try:
        return Index.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise RegistryError(
            f"Expected a registry's index at {path}, got {first['loc']}: {first['msg']}. Restore "
            "the file."
        ) from error


def artefact_path(folder: Path, digest: str) -> Path:
    """Where an artefact's files lie."""
    return folder / _ARTEFACTS / digest


def add_artefact(folder: Path, artefact: Path) -> Entry:
    """Take an artefact in: checked, copied, and then named by the index. Twice changes nothing.

    Raises:
        RegistryError: it was revoked here.
        VariantError: it does not hold (`verify_artefact`).

    """
    passport = verify_artefact(artefact)
    with _changing(folder) as index:
        entry = _entry(file_digest(artefact / PASSPORT), passport)
        known = {each.digest: each for each in index.artefacts}
        if entry.digest in known:
            if known[entry.digest].is_active:
                return known[entry.digest]
            raise RegistryError(
                f"Expected an artefact that may be served, got {entry.digest[:_SHOWN]}, which was "
                f"revoked: {known[entry.digest].because}. Export another."
            )
        _copy(artefact, artefact_path(folder, entry.digest))
        versions = index.versions
        if entry.version not in {each.digest for each in versions}:
            new = Version(digest=entry.version, name=passport.parent, because="exported from")
            versions = (*versions, new)
        _save(folder, Index(versions=versions, artefacts=(*index.artefacts, entry)))
    return entry


def add_version(folder: Path, version: Version) -> None:
    """Say where a model came from. Twice changes nothing.

    Raises:
        RegistryError: its origin is not known here.

    """
    with _changing(folder) as index:
        if version.digest in {each.digest for each in index.versions}:
            return
        if version.derived_from not in {None, *(each.digest for each in index.versions)}:
            raise RegistryError("Expected a version that is known here as the origin, got another.")
        _save(folder, index.model_copy(update={"versions": (*index.versions, version)}))


def revoke(folder: Path, digests: Mapping[str, str | None], because: str) -> None:
    """Revoke artefacts; their files are removed, what the index says of them stays.

    Args:
        digests: by which artefact each is replaced; None where by none yet.
        because: why, for whoever asks for one.

    Raises:
        RegistryError: an artefact that is not known here.

    """
    with _changing(folder) as index:
        _check_known(index, digests)
        changed = tuple(
            each.model_copy(
                update={
                    "status": "revoked",
                    "because": because,
                    "replaced_by": digests[each.digest] or each.replaced_by,
                }
            )
            if each.digest in digests
            else each
            for each in index.artefacts
        )
        left = index.model_copy(update={"artefacts": changed})
        _save(folder, left)
        _sweep(folder, left)


def fetch(folder: Path, digest: str, out: Path) -> Entry:
    """Copy an active artefact out of the registry, checked; `out` appears whole or not at all.

    Args:
        digest: the beginning of its passport's digest, enough to tell it apart.

    Raises:
        RegistryError: none of that digest, several, or a revoked one; or `out` exists.
        VariantError: its files are not as they were taken in.

    """
    if out.exists():
        raise RegistryError(f"Expected no {out} yet, got one. Choose another place.")
    entry = _one(read_index(folder), digest)
    _copy(artefact_path(folder, entry.digest), out)
    try:
        verify_artefact(out)
        if file_digest(out / PASSPORT) != entry.digest:
            raise RegistryError(
                f"Expected the passport {entry.digest[:_SHOWN]}, got another. Restore the registry."
            )
    except VariantError:
        shutil.rmtree(out)
        raise
    return entry


def passport_of(folder: Path, entry: Entry) -> Passport:
    """Read the passport of an active artefact."""
    return read_passport(artefact_path(folder, entry.digest))


def _one(index: Index, digest: str) -> Entry:
    found = [each for each in index.artefacts if each.digest.startswith(digest)]
    if len(found) != 1:
        raise RegistryError(
            f"Expected the digest of one artefact, got {digest!r}, which {len(found)} have. "
            "`arion model registry list` shows them."
        )
    if not found[0].is_active:
        other = found[0].replaced_by
        hint = f"Take {other[:_SHOWN]}." if other else "None takes its place."
        raise RegistryError(
            f"Expected an artefact that may be served, got a revoked one: {found[0].because}. "
            f"{hint}"
        )
    return found[0]


def _entry(digest: str, passport: Passport) -> Entry:
    return Entry(
        digest=digest,
        version=passport.parent_digest,
        owners=tuple(share.owner for share in passport.owners),
        tier=passport.tier,
        container=passport.container,
        number_format=passport.number_format,
        experts=passport.contents.experts,
        file_bytes=passport.file_bytes,
    )


def _check_known(index: Index, digests: Mapping[str, str | None]) -> None:
    if unknown := sorted(digests.keys() - {each.digest for each in index.artefacts}):
        raise RegistryError(
            f"Expected artefacts of this registry, got {unknown[0][:_SHOWN]}. `arion model "
            "registry list` shows them."
        )


@contextmanager
def _changing(folder: Path) -> Iterator[Index]:
    """Hold the registry against other writers, and finish what a crash left."""
    read_index(folder)  # is it one at all?
    with only_writer(folder):
        index = read_index(folder)
        _sweep(folder, index)
        yield index


def _sweep(folder: Path, index: Index) -> None:
    """Remove every artefact's files that the index does not call active."""
    active = {each.digest for each in index.active()}
    for path in sorted((folder / _ARTEFACTS).iterdir()):
        if path.name not in active:
            shutil.rmtree(path)
    sync(folder / _ARTEFACTS)


def _copy(source: Path, target: Path) -> None:
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for path in files_of(source):
        shutil.copyfile(path, part / path.name)
        sync(part / path.name)
    put(part, target)


def _save(folder: Path, index: Index) -> None:
    # Validated anew: a copy with changes was not.
    whole = Index.model_validate(index.model_dump())
    write_whole(folder / _INDEX, (whole.model_dump_json(indent=2) + "\n").encode())
