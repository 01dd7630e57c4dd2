"""What is wrong with a document that a schema refuses, in half a line."""

from pydantic import ValidationError


def first_fault(error: ValidationError, whole: str = "the file") -> str:
    """Return `field.inner: what is wrong` of the first fault.

    A schema's own checks may quote a value in their text; pydantic's do not.

    Args:
        error: why the schema refuses it.
        whole: stands for the field where no single one is to blame.

    """
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or whole}: {first['msg']}"
