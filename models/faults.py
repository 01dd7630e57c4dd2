"""What is wrong with a document that a schema refuses, in half a line."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

_OUT_OF_RANGE = frozenset({"greater_than", "greater_than_equal", "less_than", "less_than_equal"})
_ALIKE = 0.7  # of the letters of a key that may have been meant
_LONGEST = 200  # of a place in characters; whoever wrote the document chose them
_FEW = 8  # keys that are worth listing


def first_fault(
    error: ValidationError, whole: str = "the file", schema: type[BaseModel] | None = None
) -> str:
    """Return `field.inner: what is wrong` of the first fault.

    A schema's own checks may quote a value in their text; of pydantic's, only those of a number's
    range do here.

    Args:
        error: why the schema refuses it.
        whole: stands for the field where no single one is to blame.
        schema: what refuses it; of an unknown key it tells which one may have been meant.

    """
    first = error.errors(include_url=False, include_context=False)[0]
    said = first["msg"].removeprefix("Value error, ").removesuffix(".")
    if first["type"] == "extra_forbidden":
        said = "there is no such key" + meant(first["loc"], schema)
    elif first["type"] in _OUT_OF_RANGE and isinstance(first["input"], int | float):
        said += f", got {first['input']}"
    return f"{_shown(first['loc']) or whole}: {said}"


def _shown(place: Sequence[int | str]) -> str:
    text = ".".join(map(str, place))[:_LONGEST]
    return text if text.isprintable() else repr(text)


def place_of(error: ValidationError) -> tuple[str, ...]:
    """Return the names that lead to the field of the first fault; none for the whole document."""
    return tuple(map(str, error.errors(include_url=False, include_context=False)[0]["loc"]))


def meant(place: Sequence[int | str], schema: type[BaseModel] | None) -> str:
    """Return `, perhaps KEY` of an unknown key, or the keys there are where they are few.

    Args:
        place: the names that lead to it. schema: what refuses it; None knows nothing.

    """
    key, known = str(place[-1]), sorted(_keys_at(place[:-1], schema))
    if near := get_close_matches(key, known, 1, _ALIKE):
        return f", perhaps {near[0]}"
    return f", there are {', '.join(known)}" if 0 < len(known) <= _FEW else ""


def _keys_at(place: Sequence[int | str], schema: type[BaseModel] | None) -> set[str]:
    """Return the keys that a schema has at a place; of a choice of schemas, those of all."""
    found = [schema] if schema is not None else []
    for part in place:
        if isinstance(part, str):
            inner = [
                each.model_fields[part].annotation for each in found if part in each.model_fields
            ]
            found = [one for annotation in inner for one in _models_in(annotation)]
    return {key for each in found for key in each.model_fields}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the schemas that an annotation names, however deep; below names of a dict's, none."""
    if get_origin(annotation) is dict:
        return
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
