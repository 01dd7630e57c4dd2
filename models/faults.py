"""What is wrong with a document that a schema refuses, in half a line."""

from pydantic import ValidationError

_OUT_OF_RANGE = frozenset({"greater_than", "greater_than_equal", "less_than", "less_than_equal"})


def first_fault(error: ValidationError, whole: str = "the file") -> str:
    """Return `field.inner: what is wrong` of the first fault.

    A schema's own checks may quote a value in their text; of pydantic's, only those of a number's
    range do here.

    Args:
        error: why the schema refuses it.
        whole: stands for the field where no single one is to blame.

    """
    first = error.errors(include_url=False, include_context=False)[0]
    said = first["msg"]
    if first["type"] == "extra_forbidden":
        said = "there is no such key"
    elif first["type"] in _OUT_OF_RANGE and isinstance(first["input"], int | float):
        said += f", got {first['input']}"
    return f"{'.'.join(map(str, first['loc'])) or whole}: {said}"


def place_of(error: ValidationError) -> tuple[str, ...]:
    """Return the names that lead to the field of the first fault; none for the whole document."""
    return tuple(map(str, error.errors(include_url=False, include_context=False)[0]["loc"]))
