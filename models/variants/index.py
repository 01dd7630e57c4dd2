"""A registry's index: versions of a model, where each came from, and the artefacts made of them.

    registry.json             the index; replacing it is the one step by which anything changes
    artefacts/<digest>/       each artefact's folder as `arion model export` wrote it, named by the
                              SHA-256 of its passport

Nothing here changes a registry (`models.variants.registry` does), and nothing heavy is loaded.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import ValidationError, model_validator

from models.faults import first_fault
from models.names import Digest, OwnerName, Statement
from models.variants.extras import VariantError
from models.variants.frozen import Frozen
from models.variants.names import Container

INDEX_FILE, ARTEFACTS_FOLDER = "registry.json", "artefacts"
SHOWN = 12
"""Digits of a digest that tell artefacts apart in messages."""


class RegistryError(VariantError):
    """A registry that cannot be read or changed as asked."""


class Version(Frozen):
    """A model that artefacts are made of.

    Attributes:
        digest: `model_digest`. derived_from: the version before it. because: how it came about.

    """

    digest: Digest
    name: str
    derived_from: Digest | None = None
    because: Statement


class Entry(Frozen):
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


class Index(Frozen):
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


def read_index(folder: Path) -> Index:
    """Read a registry's index; no artefact is looked at.

    Raises:
        RegistryError: none there, or not one.

    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise RegistryError(
            f"Expected {INDEX_FILE} in {folder}, got none. Make a registry with `arion model "
            "registry create`."
        )
    try:
        return Index.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise RegistryError(
            f"Expected a registry's index at {path}, got {first_fault(error)}. Restore the file."
        ) from error


def artefact_path(folder: Path, digest: str) -> Path:
    """Where an artefact's files lie."""
    return folder / ARTEFACTS_FOLDER / digest


def find_entry(index: Index, digest: str) -> Entry:
    """Return an active artefact by the beginning of its passport's digest.

    Raises:
        RegistryError: none of that digest, several, or a revoked one.

    """
    found = [each for each in index.artefacts if each.digest.startswith(digest)]
    if len(found) != 1:
        raise RegistryError(
            f"Expected the digest of one artefact, got {digest!r}, which {len(found)} have. "
            "`arion model registry list` shows them."
        )
    if not found[0].is_active:
        other = found[0].replaced_by
        hint = f"Take {other[:SHOWN]}." if other else "None takes its place."
        raise RegistryError(
            f"Expected an artefact that may be served, got a revoked one: {found[0].because}. "
            f"{hint}"
        )
    return found[0]
