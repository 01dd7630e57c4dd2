"""`arion model evaluate`: every file, every byte, and how a mistake ends."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from arion.cli import app
from models.checkpoint import load_model, save_model
from models.config import ModelConfig
from models.decoder import Decoder
from models.evaluate import evaluate
from models.experts import Activation
from models.tokenizer import Tokenizer

CONFIG = ModelConfig(
    vocab_size=300, hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, experts=4,
    experts_per_token=2, expert_hidden_size=24, max_positions=64, initializer_range=0.2,
)  # fmt: skip
NOTE = "\n\n  Ward seven.  \r\n\n\n" + "Line with 한국어 in it.\n" * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "m"
    model = Decoder(CONFIG, torch.Generator().manual_seed(0))
    save_model(model, Tokenizer.train([NOTE] * 3, 300), folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    (data / "README.md").write_text("no data")
    (data / "note.txt").write_bytes(NOTE.encode())
    (data / "deep" / "note.txt.gz").write_bytes(gzip.compress(b"compressed"))
    (data / "notes.jsonl").write_text('{"text": "one"}\n\n{"text": "two 한"}\n')
    (data / "qa.jsonl").write_text('{"question": "why", "answer": "so"}\n')
    return data


def run(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["model", "evaluate", str(folder), *options])


def test_every_file_and_byte_is_counted(folder: Path, data: Path) -> None:
    result = run(folder, "--data", str(data), "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    listed = {each["file"]: each for each in found["files"]}
    assert list(listed) == ["deep/note.txt.gz", "note.txt", "notes.jsonl", "qa.jsonl"]
    sizes = {name: each["bytes"] for name, each in listed.items()}
    assert sizes == {
        "deep/note.txt.gz": 10,
        "note.txt": len(NOTE.encode()),
        "notes.jsonl": len("onetwo 한".encode()),
        "qa.jsonl": len("Q: why\nA: so"),
    }
    assert listed["notes.jsonl"]["documents"] == 2
    total = found["total"]
    assert total["bytes"] == sum(sizes.values())
    nats = sum(each["nats_per_token"] * each["tokens"] for each in listed.values())
    assert total["nats_per_token"] == pytest.approx(nats / total["tokens"])
    assert (found["length"], found["overlap"]) == (64, 0)
    assert "evaluate" in result.stderr


def test_figures_are_the_librarys(folder: Path, data: Path) -> None:
    model, tokenizer = load_model(folder)
    rows = tokenizer.rows([NOTE], 32, None, 8)[0]
    expected = evaluate(model, rows, 16, Activation(3, 0.4))
    options = ["--length", "32", "--overlap", "8", "--experts-per-token", "3", "--threshold", "0.4"]
    result = run(folder, "--data", str(data / "note.txt"), *options, "--json")
    found = json.loads(result.stdout)
    assert found["files"][0]["windows"] == len(rows)
    for figures in (found["files"][0], found["total"]):
        assert figures["nats_per_token"] == pytest.approx(expected.nats_per_token)
        assert figures["perplexity"] == pytest.approx(expected.perplexity)
        assert figures["bits_per_byte"] == pytest.approx(expected.bits_per_byte)
        assert figures["mean_active_experts"] == pytest.approx(expected.experts_per_token)
        assert figures["tokens"] == expected.tokens
    assert (found["experts_per_token"], found["threshold"]) == (3, 0.4)


def test_the_table_shows_the_same_figures(folder: Path, data: Path) -> None:
    shown = run(folder, "--data", str(data)).stdout
    lines = {line.split()[0]: line.split() for line in shown.splitlines() if line.split()}
    assert list(lines) == [
        "file",
        "deep/note.txt.gz",
        "note.txt",
        "notes.jsonl",
        "qa.jsonl",
        "total",
    ]
    found = json.loads(run(folder, "--data", str(data), "--json").stdout)
    assert lines["total"][3] == f"{found['total']['nats_per_token']:.4f}"


def test_data_toml_says_what_the_text_is(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.jsonl").write_text('{"text": "no", "body": "yes!"}\n')
    (tmp_path / "d" / "data.toml").write_text('text_fields = ["body"]\n')
    found = json.loads(run(folder, "--data", str(tmp_path / "d"), "--json").stdout)
    assert found["total"]["bytes"] == 4


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("empty.txt", b"", "empty.txt"),
        ("blank.txt", b" \n\n", "blank.txt"),
        ("latin.txt", "Zwölf".encode("latin-1"), "latin.txt:1"),
        ("binary.txt", b"a\0b", "binary.txt:1"),
        ("cut.txt.gz", gzip.compress(b"abc" * 99, mtime=0)[:20], "cut.txt.gz"),
        ("empty.jsonl", b"\n", "empty.jsonl"),
        ("bad.jsonl", b'{"text": "a"}\n{', "bad.jsonl:2"),
        ("field.jsonl", b'{"body": "a"}\n', "field.jsonl:1"),
        ("picture.png", b"\x89PNG", "picture.png"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    name: str, content: bytes, text: str, folder: Path, data: Path
) -> None:
    (data / name).write_bytes(content)
    result = run(folder, "--data", str(data))
    assert (result.exit_code, result.stdout) == (2, "")
    assert text in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--length", "65"], "at most 64"),
        (["--length", "8", "--overlap", "8"], "overlap"),
        (["--threshold", "-1"], "threshold"),
    ],
)
def test_impossible_options(options: list[str], text: str, folder: Path, data: Path) -> None:
    result = run(folder, "--data", str(data), *options)
    assert result.exit_code == 2
    assert text in result.stderr
    assert run(folder, "--data", str(data / "none")).exit_code == 2
