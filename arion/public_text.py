"""Public text, which says of itself that it is: calibration and held-out figures take no other.

A folder of public text holds a `public.toml` beside its files:

    name = "court decisions"
    source = "Federal Court, published decisions of 2024"
    licence = "public domain"

What a variant's passport says of a text is released with it. A folder without that file, or one
whose `data.toml` names a privacy unit, is therefore refused.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from arion.institutions import own_config, read_public
from client.shards import PUBLIC_NAME, DataError, data_files
from models.durable import file_digest
from models.names import Statement


class _Declaration(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[\w .-]{1,63}$")]
    source: Statement
    licence: Statement


@dataclass(frozen=True)
class PublicText:
    """Documents that anyone may know.

    Attributes:
        name, source, licence: as declared. texts: whole documents.
        files: SHA-256 of each file, by its path in the folder.

    """

    name: str
    source: str
    licence: str
    texts: tuple[str, ...]
    files: dict[str, str]


def read_public_text(folder: Path) -> PublicText:
    """Read a folder that declares its text public.

    Raises:
        DataError: no declaration, an incomplete one, a privacy unit, or unreadable files.

    """
    declared = _declaration(folder)
    config = own_config(folder)
    if config is not None and config.unit_field is not None:
        raise DataError(
            f"{folder}: Expected public text, got a data.toml whose unit_field "
            f"{config.unit_field!r} names whose data the records are. Private text takes no part "
            "in a variant."
        )
    root = folder.resolve()
    files = {path.relative_to(root).as_posix(): file_digest(path) for path in data_files(folder)}
    return PublicText(
        declared.name, declared.source, declared.licence, read_public([folder]), files
    )


def _declaration(folder: Path) -> _Declaration:
    path = folder / PUBLIC_NAME
    if not path.is_file():
        raise DataError(
            f"{folder}: Expected {PUBLIC_NAME} in it, got none. If anyone may know this text, "
            "write name, source and licence there; private text takes no part in a variant."
        )
    try:
        return _Declaration.model_validate(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except (ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        said = f"{first['loc'][0]}: {first['msg']}" if first else str(error)
        raise DataError(
            f"{path}: Expected name, source and licence, got {said}. Correct the file."
        ) from error
