"""The command line imports a part when it is called; what trains nothing is light."""

import inspect
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from arion.cli import PARTS, app
from arion.model_cli import MODEL_PARTS
from arion.node_cli import NODE_PARTS
from arion.parts import Part
from arion.privacy_cli import PRIVACY_PARTS
from arion.run_cli import RUN_PARTS

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
LIGHT = f"""
import sys
from typer.testing import CliRunner
from arion.cli import app
for words in (
    "node invite", "node list", "node approve", "node rotate", "node revoke", "node join",
    "privacy ledger verify", "privacy ledger show", "privacy ledger export", "coordinator status",
    "run list", "run watch", "node members", "node pin", "auditor pin", "auditor pull",
    "privacy consent explain", "node consent draft",
):
    assert CliRunner().invoke(app, [*words.split(), "--help"]).exit_code == 0, words
{LOADED}
"""
CHARGES = """
import sys
from typer.testing import CliRunner
from arion.cli import app
from arion.ledger_cli import verify_command
from privacy.dp.accountant import epsilon_after  # what a ledger with debits is checked by
for words in ("calibrate --epsilon 8", "epsilon --noise-multiplier 1"):
    words = f"privacy {words} --delta 1e-6 --rounds 10 --sampling 0.1"
    assert CliRunner().invoke(app, words.split()).exit_code == 0, words
print(sorted({"torch", "flwr", "matplotlib"} & set(sys.modules)))
"""
GROUPS = {
    "model": MODEL_PARTS, "node": NODE_PARTS, "privacy": PRIVACY_PARTS, "run": RUN_PARTS,
}  # fmt: skip
WITHIN = [(group, name, part) for group, parts in GROUPS.items() for name, part in parts.items()]
EVERY = [("", name, part) for name, part in PARTS.items()] + WITHIN


@pytest.mark.parametrize("program", [SERVICE, LISTS, LIGHT, CHARGES])
def test_serving_and_listing_do_not_load_torch(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("group", "name", "part"), EVERY)
def test_every_part_has_help(group: str, name: str, part: Part) -> None:
    words = [*group.split(), name]
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0, result.output
    assert f" {' '.join(words)} [OPTIONS]" in result.output
    assert "completion" not in result.output  # for the whole command, at its front door alone
    assert all(command in result.output for command in part.more)
    again = CliRunner().invoke(app, [*words, "--help"])
    assert again.output == result.output


@pytest.mark.parametrize(("group", "name", "part"), EVERY)
def test_a_list_says_of_a_part_what_it_says_itself(group: str, name: str, part: Part) -> None:
    own = inspect.cleandoc(part.load(name).help or "").split("\n\n")[0]
    assert part.help == " ".join(own.split())


def test_the_version_is_the_packages() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, version("arion-federated") + "\n")


def test_a_value_that_a_schema_refuses_is_said_in_our_words() -> None:
    words = "privacy epsilon --noise-multiplier 1 --sampling 1.5 --rounds 10 --delta 1e-5"
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 2
    assert "sampling_probability" in result.stderr
    assert "pydantic" not in result.stderr
    assert result.stderr.count("\n") == 1


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
