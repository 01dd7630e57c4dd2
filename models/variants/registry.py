"""Changes of a registry, whose files are described in `models.variants.index`.

What the index does not call active is not there: a revoked artefact's files are removed after the
index says so, and the next change of the registry finishes what a crash left.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from models.durable import file_digest, only_writer, put, sync, write_whole
from models.variants.index import (
    ARTEFACTS_FOLDER,
    INDEX_FILE,
    SHOWN,
    Entry,
    Index,
    RegistryError,
    Version,
    artefact_path,
    find_entry,
    read_index,
)
from models.variants.kinds import files_of
from models.variants.names import PASSPORT
from models.variants.passport import Passport, read_passport, verify_artefact


def create_registry(folder: Path) -> None:
    """Make an empty registry.

    Raises:
        RegistryError: there is something at `folder`.

    """
    if folder.exists():
        raise RegistryError(f"Expected no {folder} yet, got one. Choose another place.")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / ARTEFACTS_FOLDER).mkdir(parents=True)
    _save(part, Index())
    put(part, folder)


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
                f"Expected an artefact that may be served, got {entry.digest[:SHOWN]}, which was "
                f"revoked: {known[entry.digest].because}. Export another."
            )
        place = artefact_path(folder, entry.digest)
        put(_copied(artefact, place), place)
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


def fetch(folder: Path, digest: str, out: Path, check: Callable[[Path], object]) -> Entry:
    """Copy an active artefact out of the registry; `out` appears whole or not at all.

    Args:
        digest: the beginning of its passport's digest, enough to tell it apart.
        check: called with the copy; raises to refuse it.

    Raises:
        RegistryError: none of that digest, several, or a revoked one; or `out` exists.
        VariantError: its files are not as they were taken in.

    """
    if out.exists():
        raise RegistryError(f"Expected no {out} yet, got one. Choose another place.")
    entry = find_entry(read_index(folder), digest)
    part = _copied(artefact_path(folder, entry.digest), out)
    try:
        verify_artefact(part)
        if file_digest(part / PASSPORT) != entry.digest:
            raise RegistryError(
                f"Expected the passport {entry.digest[:SHOWN]}, got another. Restore the registry."
            )
        check(part)
        put(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return entry


def passport_of(folder: Path, entry: Entry) -> Passport:
    """Read the passport of an active artefact."""
    return read_passport(artefact_path(folder, entry.digest))


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
            f"Expected artefacts of this registry, got {unknown[0][:SHOWN]}. `arion model "
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
    for path in sorted((folder / ARTEFACTS_FOLDER).iterdir()):
        if path.name not in active:
            shutil.rmtree(path)
    sync(folder / ARTEFACTS_FOLDER)


def _copied(source: Path, target: Path) -> Path:
    """Copy a folder beside its place; return where it is."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for path in files_of(source):
        shutil.copyfile(path, part / path.name)
        sync(part / path.name)
    return part


def _save(folder: Path, index: Index) -> None:
    # Validated anew: a copy with changes was not.
    whole = Index.model_validate(index.model_dump())
    write_whole(folder / INDEX_FILE, (whole.model_dump_json(indent=2) + "\n").encode())
