"""What is said of a document that a schema refuses."""

import pytest
from pydantic import BaseModel, Field, ValidationError, model_validator

from models.faults import first_fault

RANGE = "Input should be greater than or equal to 0"


class Inner(BaseModel, extra="forbid"):
    number: int = Field(ge=0)


class Outer(BaseModel):
    inner: list[Inner]

    @model_validator(mode="after")
    def _some(self) -> "Outer":
        if not self.inner:
            raise ValueError("Expected some, got none.")
        return self


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"inner": [{"number": 1}, {"number": "secret"}]}, "inner.1.number: Input should be a"),
        (
            {"inner": [{"number": -1}]},
            "inner.0.number: Input should be greater than or equal to 0, got -1",
        ),
        ({"inner": [{"number": "-1secret"}]}, "inner.0.number: Input should be a valid integer"),
        ({"inner": [{"nubmer": "secret"}]}, "inner.0.number: Field required"),
        ({"inner": [{"number": 1, "nubmer": "secret"}]}, "inner.0.nubmer: there is no such key"),
        ({}, "inner: Field required"),
        ({"inner": []}, "the run: Value error, Expected some, got none."),
    ],
)
def test_the_first_fault_is_named(document: object, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(document)
    found = first_fault(caught.value, "the run")
    assert found.startswith(said)
    assert "secret" not in found
    assert "\n" not in found
