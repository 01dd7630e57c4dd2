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


class Whole(BaseModel, extra="forbid"):
    outer: Outer | None = None
    named: dict[str, Inner] = Field(default_factory=dict)
    other: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"outr": 1}, "outr: there is no such key, perhaps outer"),
        ({"zzz": 1}, "zzz: there is no such key, there are named, other, outer"),
        (
            {"outer": {"inner": [{"number": 1, "nubmer": 2}]}},
            "outer.inner.0.nubmer: there is no such key, perhaps number",
        ),
        (
            {"other": [{"number": 1, "x": 2}]},
            "other.0.x: there is no such key, there are number",
        ),
        ({"named": {"number": {"number": 1, "x": 2}}}, "named.number.x: there is no such key"),
        ({"a\x1b[2J\n": 1}, r"'a\x1b[2J\n': there is no such key, there are named"),
        ({"z" * 300: 1}, "z" * 200 + ": there is no such key, there are named"),
    ],
)
def test_an_unknown_key_is_told_which_may_have_been_meant(document: object, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate(document)
    assert first_fault(caught.value, schema=Whole).startswith(said)
    assert first_fault(caught.value) == said.split(",", maxsplit=1)[0]


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
        ({"inner": []}, "the run: Expected some, got none"),
    ],
)
def test_the_first_fault_is_named(document: object, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(document)
    found = first_fault(caught.value, "the run")
    assert found.startswith(said)
    assert "secret" not in found
    assert "\n" not in found
