"""What the fields of a shard mean: `data.toml`, or detection by common field names."""

import string
import tomllib
from pathlib import Path
from typing import Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from client.shards import DataError, Row, iter_rows
from models.faults import first_fault
from privacy.units import INSTITUTION, RECORD

# In order of preference; a layout matches when the first record has all of its fields.
_LAYOUTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("messages",), "{messages}"),
    (("question", "answer"), "Q: {question}\nA: {answer}"),
    (("prompt", "response"), "User: {prompt}\nAssistant: {response}"),
    (
        ("instruction", "input", "output"),
        "Instruction: {instruction}\nInput: {input}\nOutput: {output}",
    ),
    (("instruction", "output"), "Instruction: {instruction}\nOutput: {output}"),
    (("text",), "{text}"),
)
UNIT_FIELDS = (
    "patient_id",
    "patient",
    "customer_id",
    "customer",
    "author",
    "user",
    "user_id",
    "party",
    "reporter",
)


class DataConfig(BaseModel):
    r"""What the fields of a shard mean; the content of a `data.toml`.

    Attributes:
        text_fields: fields that hold text, or a list of {role, content} messages.
        template: how they make up a record's text, e.g. "Q: {question}\nA: {answer}"; without one
            they are joined by blank lines. A line whose fields are all empty is left out.
        unit_field: field that says whose data a record is (its privacy unit: all records with one
            value are protected together); None makes each record a unit of its own.
            "record" and "institution" name other units (`privacy.units`) and no field.
        group_field: field whose values stay on one side of a held-out split; where it is empty,
            the unit or the text itself does. It plays no part in privacy.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_fields: tuple[str, ...] = Field(min_length=1)
    template: str = ""
    unit_field: str | None = Field(default=None, min_length=1)
    group_field: str | None = Field(default=None, min_length=1)

    @field_validator("unit_field")
    @classmethod
    def _is_no_unit_of_ours(cls, value: str | None) -> str | None:
        if value in {RECORD, INSTITUTION}:
            raise ValueError(
                f"Expected a field whose name is not itself a kind of unit, got {value!r}. Rename "
                "the field"
            )
        return value

    @model_validator(mode="after")
    def _template_uses_the_fields(self) -> Self:
        used = set(template_fields(self.template)) if self.template else set(self.text_fields)
        if unlisted := sorted(used - set(self.text_fields)):
            raise ValueError(
                f"Expected a template of text_fields {list(self.text_fields)}, got {unlisted} in "
                "it. List the field in text_fields, or write {{ and }} for literal braces."
            )
        if unused := sorted(set(self.text_fields) - used):
            raise ValueError(
                f"Expected every one of text_fields in the template, got none of {unused}. "
                "Use the field in the template or leave it out of text_fields."
            )
        return self


def template_fields(template: str) -> list[str]:
    """List the places of a template; raise ValueError if its braces do not match."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"Expected a template with {{field}} places, got: {error}. "
            "Write {{ and }} for literal braces."
        ) from error
    # "{a!r}" and "{a:>9}" would format; they are refused as names that no list can hold.
    return [
        f"{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}"
        for _, name, spec, conversion in parts
        if name is not None
    ]


def load_config(path: Path) -> DataConfig:
    """Read a `data.toml`.

    Raises:
        DataError: the file is unreadable, is not TOML, or has an unknown key or a wrong value.

    """
    try:
        return DataConfig(**tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except ValidationError as error:
        raise DataError(
            f"{path.name}: {first_fault(error, 'template', DataConfig)}. Correct this key."
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path.name}: Expected a readable TOML file, got: {error}. Correct the file."
        ) from error


def detect_layout(path: Path) -> DataConfig:
    """Find the text fields of a shard by common names in its first record.

    The order: messages; question and answer; prompt and response; instruction, (input,) output;
    text. No privacy unit is looked for: see `detect_config`.

    Raises:
        DataError: no layout matches, or the first record cannot be read.

    """
    return _layout(next(iter_rows(path)))


def detect_config(path: Path) -> DataConfig:
    """Find the text fields of a shard, and its privacy unit if a well-known field names it.

    A well-known field (patient, customer, author ...) becomes the unit only if every record has
    it. Show `describe` of the result to a person: whose data this is, is theirs to say.

    Raises:
        DataError: no layout matches, a row cannot be read, or only some records have a well-known
            unit field: falling back to single records would quietly protect people less.

    """
    rows = iter_rows(path)
    first = next(rows)
    layout = _layout(first)
    counts = dict.fromkeys(UNIT_FIELDS, 0)
    lacking: dict[str, str] = {}
    total = 0
    for row in (first, *rows):
        total += 1
        for name in UNIT_FIELDS:
            if row.fields.get(name) is not None:
                counts[name] += 1
            else:
                lacking.setdefault(name, row.source)
    found = next((name for name in UNIT_FIELDS if counts[name] == total), None)
    partial = next((name for name in UNIT_FIELDS if counts[name]), None)
    if found is None and partial is not None:
        raise DataError(
            f"{lacking[partial]}: Expected {partial!r}, the privacy unit of other records, got "
            "none. Fill it in for every record, or write a data.toml that sets or omits unit_field."
        )
    return layout.model_copy(update={"unit_field": found})


def _layout(first: Row) -> DataConfig:
    for names, template in _LAYOUTS:
        if all(name in first.fields for name in names):
            return DataConfig(text_fields=names, template=template)
    raise DataError(
        f"{first.source}: Expected text under a common field name (messages, question and answer, "
        "prompt and response, instruction and output, text), got fields "
        f"{sorted(first.fields)}. Write a data.toml with text_fields."
    )


def describe(config: DataConfig) -> str:
    """Say in one line for people what a config takes as text, unit and group."""
    unit = f"field {config.unit_field!r}" if config.unit_field else "each record on its own"
    groups = config.group_field or config.unit_field
    kept = f"records of one {groups!r}" if groups else "records of equal text"
    shape = f" as {config.template!r}" if config.template else ""
    return (
        f"text from {', '.join(config.text_fields)}{shape}; privacy unit: {unit}; "
        f"kept together in splits: {kept}"
    )
