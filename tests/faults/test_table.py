"""The tables of the documents are true: every test that they name exists, every fault is listed."""

import ast
import re
from pathlib import Path

import pytest

from tests.faults.registry import FAULTS

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("privacy.md", "threat_model.md", "architecture.md", "secure_aggregation.md", "service.md")
NODE_ID = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
NAME = re.compile(r"`(?:tests/[\w/]+\.py)?(?:::)?(test_\w+)`")
FILE = re.compile(r"`(tests/[\w/]+\.py)[`:]")


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


@pytest.mark.parametrize("name", PAGES)
def test_what_the_pages_name_exists(name: str) -> None:
    """Pages shorten node ids, so that here a name may lie in any file."""
    known = set().union(*(names_in(path) for path in ROOT.glob("tests/**/test_*.py")))
    text = page(name)
    assert [file for file in FILE.findall(text) if not (ROOT / file).exists()] == []
    assert [test for test in NAME.findall(text) if test not in known] == []
