"""The command line imports a part when it is called, and the service's part is light."""

import inspect
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from arion.cli import PARTS, app
from arion.model_cli import MODEL_PARTS
from arion.parts import Part

LOADED = 'print(sorted({"torch", "flwr", "scipy", "matplotlib"} & set(sys.modules)))'
SERVICE = f"""
import sys
from arion.cli import PARTS
PARTS["coordinator"].load("coordinator")
{LOADED}
"""
LISTS = f"""
import sys
from typer.testing import CliRunner
from arion.cli import app
for words in (["--help"], ["model", "--help"], ["model"], ["nonsense"], ["model", "nonsense"]):
    CliRunner().invoke(app, words)
{LOADED}
"""
EVERY = [*PARTS.items(), *MODEL_PARTS.items()]


@pytest.mark.parametrize("program", [SERVICE, LISTS])
def test_serving_and_listing_do_not_load_torch(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("words", [[name] for name in PARTS] + [["model", n] for n in MODEL_PARTS])
def test_every_part_has_help(words: list[str]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0, result.output
    assert f" {' '.join(words)} [OPTIONS]" in result.output
    assert "completion" not in result.output  # for the whole command, at its front door alone
    added = dict(EVERY)[words[-1]].more
    assert all(command in result.output for command in added)
    again = CliRunner().invoke(app, [*words, "--help"])
    assert again.output == result.output


@pytest.mark.parametrize(("name", "part"), EVERY)
def test_a_list_says_of_a_part_what_it_says_itself(name: str, part: Part) -> None:
    own = inspect.cleandoc(part.load(name).help or "").split("\n\n")[0]
    assert part.help == " ".join(own.split())


def test_the_front_door_lists_its_parts() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert all(f" {name} " in result.output for name in PARTS)
    assert CliRunner().invoke(app, ["nonsense"]).exit_code == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("arion mo", {"model"}),
        ("arion model ex", {"export", "expert"}),
        ("arion model expert train", {"train", "train-private"}),
        ("arion coordinator mi", {"migrate"}),
        ("arion model export --ti", {"--tier"}),
    ],
)
def test_a_shell_completes_what_is_not_imported_yet(words: str, expected: set[str]) -> None:
    asked = {"_ARION_COMPLETE": "complete_bash", "COMP_WORDS": words}
    asked["COMP_CWORD"] = str(words.count(" "))
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['arion']; import arion.cli as c; c.main()"],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert set(done.stdout.split()) == expected, done.stderr
