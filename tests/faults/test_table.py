"""The tables of the documents are true: every test that they name exists, every fault is listed."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.registry import FAULTS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
NODE_ID = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
NAME = re.compile(r"`(test_\w+)`")
PLACE = re.compile(r"`(?:(tests/[\w/]+\.py)|(test_\w+\.py))?(?:::(test_\w+))?`")


def names_in(path: Path) -> set[str]:
    """Names of a file's test functions, read without running it."""
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def rows() -> list[list[str]]:
    """The rows of the table of deliberate faults, as cells."""
    section = page("privacy.md").partition("## 12. ")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_lists_the_planted_faults() -> None:
    planted = [(fault.name, fault.test.partition("[")[0]) for fault in FAULTS]
    assert [(name, caught.strip("`")) for name, caught, _ in rows()] == planted


def test_every_named_test_exists() -> None:
    named = [match for row in rows() for cell in row[1:] for match in NODE_ID.findall(cell)]
    assert len(named) >= len(FAULTS)
    missing = [f"{file}::{name}" for file, name in named if name not in names_in(ROOT / file)]
    assert missing == []


def places_in(text: str) -> Iterator[tuple[Path, str]]:
    """The tests that a page names, "" for a whole file; shortened, they lie where the last did."""
    last = ROOT
    for file, beside, name in PLACE.findall(text):
        last = ROOT / file if file else last.with_name(beside) if beside else last
        if file or beside or name:
            yield last, name


@pytest.mark.parametrize("name", PAGES)
def test_what_the_pages_name_exists(name: str) -> None:
    """A name alone may lie in any file."""
    known = set().union(*(names_in(path) for path in ROOT.glob("tests/**/test_*.py")))
    text = page(name)
    assert [test for test in NAME.findall(text) if test not in known] == []
    for file, test in places_in(text):
        assert file.is_file(), file
        assert not test or test in names_in(file), f"{file}::{test}"
