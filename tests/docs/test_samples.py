"""Sample files parse, and say what the program does without them."""

import json
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from arion.run_file import RunFile, load_run_file
from client.config import NodeConfig
from client.data import load_config
from client.data_config import _LAYOUTS, UNIT_FIELDS, DataConfig
from privacy.consent import Consent

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SIMULATE = EXAMPLES / "simulate.toml"


def keys(section: type[BaseModel], place: str = "") -> Iterator[tuple[str, object]]:
    """Every key of a run file with its default; sections are descended into."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{place}{name}.")
        else:
            yield place + name, field.default


ALL_KEYS = dict(keys(RunFile))


def test_the_sample_run_file_holds_the_defaults() -> None:
    assert load_run_file(SIMULATE, {}) == RunFile()


@pytest.mark.parametrize("key", ALL_KEYS)
def test_the_sample_run_file_shows_every_key(key: str) -> None:
    *sections, name = key.split(".")
    values = tomllib.loads(SIMULATE.read_text(encoding="utf-8"))
    for section in sections:
        values = values[section]
    if ALL_KEYS[key] is None:
        assert name not in values
        assert f"\n# {name} = " in SIMULATE.read_text(encoding="utf-8")
    else:
        assert name in values


@pytest.mark.parametrize("path", EXAMPLES.glob("*.run.toml"), ids=lambda path: path.name)
def test_other_run_files_parse(path: Path) -> None:
    load_run_file(path, {})


@pytest.mark.parametrize("path", EXAMPLES.glob("*.data.toml"), ids=lambda path: path.name)
def test_sample_data_files_parse(path: Path) -> None:
    assert load_config(path).text_fields


@pytest.mark.parametrize("key", ALL_KEYS)
def test_the_guide_names_every_key(key: str) -> None:
    section, _, name = key.rpartition(".")
    guide = (ROOT / "docs" / "simulate.md").read_text(encoding="utf-8")
    heading = f"### [{section}]" if section else "### Top level"
    part = guide.split(heading + "\n")[1].split("\n##")[0]
    assert f"`{name}`" in part


def rows(heading: str) -> dict[str, str]:
    """Keys of a table of the institution's guide, with the defaults as they stand there."""
    guide = (ROOT / "docs" / "institution.md").read_text(encoding="utf-8")
    part = guide.split(f"## `{heading}`\n")[1].split("\n## ")[0]
    cells = [line.split(" | ") for line in part.splitlines() if line.startswith("| `")]
    return {cell[0].strip("|` "): cell[1] for cell in cells}


def as_written(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    return "none" if field.default is None else json.dumps(field.default)


@pytest.mark.parametrize(
    ("heading", "kind"),
    [("data.toml", DataConfig), ("node.toml", NodeConfig), ("consent.toml", Consent)],
)
def test_the_institutions_guide_has_every_key_and_default(
    heading: str, kind: type[BaseModel]
) -> None:
    assert rows(heading) == {name: as_written(f) for name, f in kind.model_fields.items()}


def test_the_sample_of_the_institutions_guide_parses(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "institution.md").read_text(encoding="utf-8")
    part = guide.split("## `data.toml`\n")[1].split("\n## ")[0]
    lines = [line.strip() for line in part.splitlines() if line.startswith("    ")]
    (tmp_path / "data.toml").write_text("\n".join(lines), encoding="utf-8")
    assert set(load_config(tmp_path / "data.toml").model_fields_set) == set(rows("data.toml"))


@pytest.mark.parametrize("field", [*UNIT_FIELDS, *chain(*(names for names, _ in _LAYOUTS))])
def test_the_institutions_guide_names_the_fields_that_are_detected(field: str) -> None:
    assert f"`{field}`" in (ROOT / "docs" / "institution.md").read_text(encoding="utf-8")
