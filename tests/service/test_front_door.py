"""The command line imports a part when it is called, and the service's part is light."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from arion.cli import PARTS, app

LIGHT = """
import sys
from arion.cli import PARTS
PARTS["coordinator"].load("coordinator")
print(sorted({"torch", "flwr", "scipy", "matplotlib"} & set(sys.modules)))
"""


def test_serving_does_not_load_torch() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", PARTS)
def test_every_part_has_help(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0, result.output
    added = PARTS[name].more
    assert all(command in result.output for command in added)
    again = CliRunner().invoke(app, [name, "--help"])
    assert again.output == result.output


def test_the_front_door_lists_its_parts() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert all(f" {name} " in result.output for name in PARTS)
    assert CliRunner().invoke(app, ["nonsense"]).exit_code == 2
