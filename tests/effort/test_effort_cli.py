"""`arion model generate --effort` and `arion model verifier`, end to end on a tiny model."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from arion.cli import app
from models.checkpoint import save_model
from models.config import ModelConfig
from models.decoder import Decoder
from models.tokenizer import Tokenizer

CONFIG = ModelConfig(
    vocab_size=300, hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, experts=4,
    experts_per_token=2, expert_hidden_size=24, max_positions=64, initializer_range=0.2,
)  # fmt: skip
DRAW = ("--max-new-tokens", "6", "--temperature", "1", "--seed", "3", "--json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "m"
    model = Decoder(CONFIG, torch.Generator().manual_seed(0))
    save_model(model, Tokenizer.train(["ward seven has 12 beds"] * 3, 300), folder)
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["model", *map(str, arguments)])


def test_a_check_stops_the_draws_of_the_prompts_that_pass(folder: Path) -> None:
    # Passes everything about "ward", nothing about "beds".
    found = run(
        "generate", folder, "--prompt", "ward", "--prompt", "beds", *DRAW, "--effort", "auto",
        "--check", "grep -q ward",
    )  # fmt: skip
    assert found.exit_code == 0, found.stderr
    data = json.loads(found.stdout)
    assert [len(each["draws"]) for each in data["completions"]] == [1, 8]
    assert [each["score"] for each in data["completions"]] == [1, 0]
    drawn = [draw for each in data["completions"] for draw in each["draws"]]
    assert data["tokens"] == sum(draw["tokens"] for draw in drawn)
    assert len({draw["text"] for draw in drawn[1:]}) > 1


def test_answers_of_which_none_passes_are_not_shown_as_if_one_had(folder: Path) -> None:
    asked = ("generate", folder, "--prompt", "ward", *DRAW[:-1], "--effort", "3", "--check")
    failed, passed = run(*asked, "false"), run(*asked, "true")
    assert (failed.exit_code, passed.exit_code) == (0, 0)
    assert "none of 3 answers to 'ward' passed the check" in failed.stderr
    assert "note" not in passed.stderr


def test_a_budget_and_revisions(folder: Path) -> None:
    found = run(
        "generate", folder, "--prompt", "beds", *DRAW, "--effort", "4", "--check", "false",
        "--token-budget", "20", "--revise", " seven",
    )  # fmt: skip
    data = json.loads(found.stdout)
    [each] = data["completions"]
    assert data["tokens"] <= 20
    assert [draw["revised"] for draw in each["draws"]] == [False, True, False][: len(each["draws"])]
    assert len(each["draws"]) >= 3


def test_a_trained_verifier_chooses(folder: Path, tmp_path: Path) -> None:
    lines = [
        {"question": f"{n} and 1?", "solutions": [
            {"solution": f"<<{n}+1={n + 1}>>\nA: {n + 1}", "correct": True, "model": "a"},
            {"solution": f"<<{n}+1={n + 5}>>\nA: {n + 5}", "correct": False, "model": "b"},
        ]}
        for n in range(60)
    ]  # fmt: skip
    data, out = tmp_path / "a.jsonl", tmp_path / "v"
    data.write_text("\n".join(map(json.dumps, lines)))
    assert run("verifier", "train", data, "--out", out).exit_code == 0
    measured = json.loads(run("verifier", "evaluate", out, data, "--json").stdout)
    assert measured["verifier, all answers"] == measured["oracle"] == 1
    found = run(
        "generate", folder, "--prompt", "2 and 1?", *DRAW, "--effort", "3", "--verifier", out
    )
    [each] = json.loads(found.stdout)["completions"]
    assert each["score"] == max(draw["score"] for draw in each["draws"])
    assert len(each["draws"]) == 3

    assert run("verifier", "train", data, "--out", out).exit_code == 2
    nothing = run("verifier", "train", data, "--out", tmp_path / "no", "--auto-share", 0)
    assert nothing.exit_code == 2
    assert "Expected a share in (0, 1] for auto, got 0" in nothing.stderr
    by = tmp_path / "by"
    assert run("verifier", "train", data, "--out", by, "--by-source").exit_code == 0
    refused = run("generate", folder, "--prompt", "q", *DRAW, "--effort", "2", "--verifier", by)
    assert refused.exit_code == 2
    assert "Train it without --by-source" in refused.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--effort", "auto"], "Expected --verifier or --check"),
        (["--effort", "many", "--check", "true"], "Expected --effort auto or a number"),
        (["--effort", "9999", "--check", "true"], "Expected at most 1000 answers"),
        (["--effort", "0", "--check", "true"], "Expected at least 1 draw"),
        (["--check", "true"], "Expected --effort with --check"),
        (["--token-budget", "9"], "Expected --effort with --token-budget"),
        (["--effort", "2", "--verifier", "none"], "Expected a verifier at none"),
        (["--effort", "2", "--check", " "], "Expected a program to check answers"),
        (["--effort", "2", "--check", "true"], "Expected temperature above 0 with --effort"),
    ],
)
def test_mistakes_end_in_one_line(folder: Path, options: list[str], said: str) -> None:
    found = run("generate", folder, "--prompt", "ward", *options)
    assert found.exit_code == 2
    assert said in found.stderr
