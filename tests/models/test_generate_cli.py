"""`arion model generate`: its sources of prompts, its output, and how a mistake ends."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from arion.cli import app
from models.checkpoint import load_model, save_model
from models.config import ModelConfig
from models.decoder import Decoder
from models.experts import Activation
from models.generate import Settings, generate
from models.sampling import Sampling
from models.tokenizer import Tokenizer

CONFIG = ModelConfig(
    vocab_size=300, hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, experts=4,
    experts_per_token=2, expert_hidden_size=24, max_positions=64, initializer_range=0.2,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "m"
    model = Decoder(CONFIG, torch.Generator().manual_seed(0))
    save_model(model, Tokenizer.train(["ward seven 한국어"] * 3, 300), folder)
    return folder


def run(folder: Path, *options: str, text: str | None = None) -> Result:
    return CliRunner().invoke(app, ["model", "generate", str(folder), *options], input=text)


def completions(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["completions"]


def test_json_holds_what_the_library_generates(folder: Path) -> None:
    options = ["--prompt", "ward", "--prompt", "한국", "--max-new-tokens", "9", "--json"]
    settings = Settings(9, Sampling(1.2, 0.9, 40, 0.9, 0.01), ("q",), Activation(3, 0.2))
    expected = generate(
        *load_model(folder), ["ward", "한국"], settings, torch.Generator().manual_seed(5)
    )
    found = run(
        folder, *options, "--temperature", "0.9", "--top-k", "40", "--top-p", "0.9",
        "--min-p", "0.01", "--repetition-penalty", "1.2", "--seed", "5", "--stop", "q",
        "--experts-per-token", "3", "--threshold", "0.2", "--batch", "1",
    )  # fmt: skip
    assert json.loads(found.stdout)["seed"] == 5
    assert completions(found) == [
        {"prompt": p, "text": c.text, "tokens": list(c.tokens), "finish": c.finish.value}
        for p, c in zip(["ward", "한국"], expected, strict=True)
    ]


def test_prompts_come_from_options_files_and_standard_input(folder: Path, tmp_path: Path) -> None:
    lines, objects = tmp_path / "p.txt", tmp_path / "p.jsonl"
    lines.write_text("ward\n\nseven\n")
    objects.write_text('{"prompt": "ward\\n"}\n{"prompt": "seven", "id": 1}\n')
    few = ["--max-new-tokens", "3", "--json"]
    for options, text, expected in (
        (["--prompt", "ward", "--prompt", "seven"], None, ["ward", "seven"]),
        (["--prompts-file", str(lines)], None, ["ward", "seven"]),
        (["--prompts-file", str(objects)], None, ["ward\n", "seven"]),
        (["--prompt", "-"], "two\nlines\n", ["two\nlines\n"]),
    ):
        found = completions(run(folder, *options, *few, text=text))
        assert [each["prompt"] for each in found] == expected


def test_streamed_text_is_the_same_text(folder: Path) -> None:
    options = ["--prompt", "ward", "--max-new-tokens", "20"]
    text = completions(run(folder, *options, "--json"))[0]["text"]
    for choice in ([], ["--stream"], ["--no-stream"]):
        result = run(folder, *options, *choice)
        assert result.stdout == f"{text}\n"


def test_a_blank_line_is_explained(folder: Path) -> None:
    options = ["--prompt", "ward", "--max-new-tokens", "20"]
    text = str(completions(run(folder, *options, "--json"))[0]["text"])
    for choice in (["--stream"], ["--no-stream"]):
        ended = run(folder, *options, *choice, "--stop", text[:1])
        assert (ended.stdout, ended.exit_code) == ("\n", 0)
        assert "ended the text at once after 'ward'" in ended.stderr
        assert "--chat" not in ended.stderr
        assert run(folder, *options, *choice).stderr.count("note:") == 0


def test_a_blank_line_of_a_model_made_for_chats_is_explained(chat: Path) -> None:
    options = ["--prompt", "ward", "--max-new-tokens", "20"]
    text = str(completions(run(chat, *options, "--json"))[0]["text"])
    assert "try --chat" in run(chat, *options, "--stop", text[:1]).stderr


@pytest.fixture(scope="module")
def chat(folder: Path) -> Path:
    pytest.importorskip("transformers")
    made = folder.parent / "chat"
    shutil.copytree(folder, made)
    (made / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}a:"
    )
    return made


def test_a_chat_is_read_as_its_template_says_and_told_as_it_was_asked(chat: Path) -> None:
    settings = Settings(9, begin_of_text=False)
    for options, read in (([], "u:ward;a:"), (["--system", "7"], "s:7;u:ward;a:")):
        (expected,) = generate(*load_model(chat), [read], settings)
        asked = ["--prompt", "ward", "--max-new-tokens", "9", "--chat", *options]
        (found,) = completions(run(chat, *asked, "--json"))
        assert (found["prompt"], found["tokens"]) == ("ward", list(expected.tokens))
        assert run(chat, *asked).stdout == f"{expected.text}\n"


def test_a_revision_is_a_further_turn_of_a_chat(
    chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def noted(model: Decoder, tokenizer: Tokenizer, prompts: list[str], *rest: object) -> object:
        read.extend(prompts)
        return generate(model, tokenizer, prompts, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("arion.effort_cli.generate", noted)
    found = run(
        chat, "--prompt", "ward", "--max-new-tokens", "3", "--chat", "--effort", "2", "--revise",
        "sure?", "--check", "false", "--temperature", "1", "--seed", "1", "--json",
    )  # fmt: skip
    draws = json.loads(found.stdout)["completions"][0]["draws"]
    assert read == ["u:ward;a:", f"u:ward;a:{draws[0]['text']};u:sure?;a:"]


def test_a_chat_wants_a_template(folder: Path, chat: Path) -> None:
    refused = run(folder, "--prompt", "ward", "--chat")
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert "chat template, got one without" in refused.stderr
    assert "Expected --chat with --system" in run(chat, "--prompt", "a", "--system", "b").stderr


def test_several_texts_are_told_apart(folder: Path) -> None:
    shown = run(folder, "--prompt", "ward", "--prompt", "seven", "--max-new-tokens", "2").stdout
    assert shown.startswith("[1] ward\n")
    assert "\n[2] seven\n" in shown


def test_a_fresh_seed_is_told(folder: Path) -> None:
    options = ["--prompt", "ward", "--temperature", "1", "--max-new-tokens", "5", "--json"]
    first = run(folder, *options)
    seed = json.loads(first.stdout)["seed"]
    assert run(folder, *options, "--seed", str(seed)).stdout == first.stdout
    assert json.loads(run(folder, *options).stdout)["seed"] != seed


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "--prompt or --prompts-file"),
        (["--prompt", "-", "--prompt", "-"], "once"),
        (["--prompt", "a", "--prompt", "b", "--stream"], "--stream"),
        (["--prompt", "a", "--stream", "--json"], "--stream"),
        (["--prompt", "a", "--max-new-tokens", "64"], "at most 64 tokens"),
        (["--prompt", "a", "--prompt", "ward " * 30, "--max-new-tokens", "20"], "prompt 2"),
        (["--prompt", "a", "--top-k", "5"], "temperature"),
        (["--prompt", "a", "--stop", ""], "empty"),
        (["--prompt", "a", "--threshold", "2"], "threshold"),
        (["--prompts-file", "none.txt"], "none.txt"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_printed(
    options: list[str], text: str, folder: Path
) -> None:
    result = run(folder, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert text in result.stderr
    assert result.stderr.count("\n") == 1


def test_damaged_prompt_files_and_folders(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    (tmp_path / "bad.jsonl").write_text("{\n")
    (tmp_path / "empty.txt").write_text("\n")
    for name, text in (("p.jsonl", ":2"), ("bad.jsonl", ":1"), ("empty.txt", "empty file")):
        result = run(folder, "--prompts-file", str(tmp_path / name))
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert text in result.stderr
    assert run(tmp_path, "--prompt", "a").exit_code == 2
