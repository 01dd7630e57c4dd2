"""`arion model list`, `show` and `import`: what they print and write, and how a mistake ends."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from arion.cli import app
from models.checkpoint import inspect_model, load_model, model_digest
from models.composition import SIDECAR
from models.config import preset, preset_names
from models.counts import parameter_counts
from tests.models.foreign_folders import make_folder

transformers = pytest.importorskip("transformers")

RUNNER = CliRunner()


def test_list_names_every_preset_with_its_size() -> None:
    result = RUNNER.invoke(app, ["model", "list"])
    assert result.exit_code == 0
    for name in preset_names():
        line = next(line for line in result.stdout.splitlines() if line.split()[:1] == [name])
        assert f"{parameter_counts(preset(name)).total:,}" in line


def test_list_json_is_data() -> None:
    listed = json.loads(RUNNER.invoke(app, ["model", "list", "--json"]).stdout)
    assert [each["name"] for each in listed] == list(preset_names())
    assert all(each["active_parameters"] < each["parameters"] for each in listed)


def test_show_a_preset() -> None:
    shown = json.loads(RUNNER.invoke(app, ["model", "show", "arion-1.2-2b", "--json"]).stdout)
    counts = parameter_counts(preset("arion-1.2-2b"))
    assert shown["parameters"] == counts.total
    assert shown["weight_bytes"]["bf16"] == 2 * counts.total
    assert shown["expert_owners"] == {"public": 16}
    assert shown["config"]["kv_heads"] == 2
    text = RUNNER.invoke(app, ["model", "show", "arion-1.2-2b"]).stdout
    assert f"{counts.active:,} (25%)" in text
    assert "16 (public: 16), 2 per token" in text


def test_show_of_an_unknown_name_is_one_line() -> None:
    result = RUNNER.invoke(app, ["model", "show", "huge"])
    assert result.exit_code == 2
    assert "arion-1.0-1b" in result.stderr
    assert result.stderr.count("\n") == 1


def invoke(*arguments: object) -> Result:
    return RUNNER.invoke(app, ["model", *map(str, arguments)])


def test_show_a_folder_from_its_headers(tmp_path: Path) -> None:
    make_folder(tmp_path / "m", "llama", dtype=torch.bfloat16, shard="20KB")
    shown = json.loads(invoke("show", tmp_path / "m", "--json").stdout)
    model, _ = load_model(tmp_path / "m")
    assert shown["parameters"] == sum(p.numel() for p in model.parameters())
    assert shown["active_parameters"] == shown["parameters"]
    assert shown["config"]["rope_scaling"]["factor"] == 4.0
    stored = shown["stored"]
    assert (stored["family"], stored["types"]) == ("llama", ["BF16"])
    assert stored["files"] == len(list((tmp_path / "m").glob("*.safetensors"))) > 3
    assert "llama, BF16" in invoke("show", tmp_path / "m").stdout


def test_show_names_the_owners_of_experts(tmp_path: Path) -> None:
    make_folder(tmp_path / "m", "qwen3_moe")
    shares = [
        {"owner": "public", "first": 0, "count": 3},
        {"owner": "hospital", "first": 3, "count": 1, "module": "0" * 64},
    ]
    sidecar = {"format": 1, "base_digest": "0" * 64, "shares": shares}
    (tmp_path / "m" / SIDECAR).write_text(json.dumps(sidecar))
    assert "4 (public: 3, hospital: 1), 2 per token" in invoke("show", tmp_path / "m").stdout
    refused = invoke("import", tmp_path / "m", "--out", tmp_path / "out")
    assert "owners already" in refused.stderr  # which an import would lose


def test_import_keeps_the_function_and_says_what_it_did(tmp_path: Path) -> None:
    theirs = make_folder(tmp_path / "in", "llama")
    result = invoke("import", tmp_path / "in", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    done = json.loads(result.stdout)
    assert (done["family"], done["written_as"], done["function_kept"]) == ("llama", "llama", True)
    assert "reading tensors" in result.stderr
    model, _ = load_model(tmp_path / "out")
    assert model_digest(model) == done["digest"]
    token_BT = torch.arange(60).view(2, 30)
    torch.testing.assert_close(model(token_BT), theirs(token_BT).logits, rtol=0, atol=1e-5)
    text = invoke("import", tmp_path / "in", "--out", tmp_path / "again").stdout
    assert f"{done['parameters']:,} parameters" in text
    tokens, vocabulary = done["tokenizer_tokens"], done["vocabulary"]
    assert (tokens, vocabulary) == (
        load_model(tmp_path / "in")[1].vocab_size,
        theirs.config.vocab_size,
    )
    assert ("WARNING: the tokenizer has" in text) == (tokens < 0.9 * vocabulary)
    large = {"vocab_size": 2 * vocabulary}
    make_folder(tmp_path / "large", "llama", **large)
    told = invoke("import", tmp_path / "large", "--out", tmp_path / "third").stdout
    assert "WARNING: the tokenizer has" in told


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_import_with_experts_upcycles(kind: str, tmp_path: Path) -> None:
    theirs = make_folder(tmp_path / "in", kind, tie_word_embeddings=True)
    out = tmp_path / "out"
    done = json.loads(
        invoke("import", tmp_path / "in", "--out", out, "--experts", 4, "--json").stdout
    )
    assert (done["experts"], done["experts_per_token"], done["function_kept"]) == (4, 2, True)
    assert done["largest_difference"] < 1e-5
    written = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    assert written.config.num_local_experts == 4
    token_BT = torch.arange(60).view(2, 30)
    torch.testing.assert_close(written(token_BT).logits, theirs(token_BT).logits, rtol=0, atol=1e-5)
    options = ["--experts", 4, "--noise", 0.05, "--seed", 3, "--replace"]
    noised = invoke("import", tmp_path / "in", "--out", out, *options)
    assert "The function was changed" in noised.stdout


@pytest.mark.parametrize(("source", "kept"), [(torch.bfloat16, True), (torch.float32, False)])
def test_import_in_half_precision_says_whether_it_rounded(
    source: torch.dtype, kept: bool, tmp_path: Path
) -> None:
    make_folder(tmp_path / "in", "llama", dtype=source)
    out = tmp_path / "out"
    options = ["--out", out, "--dtype", "bfloat16", "--json"]
    done = json.loads(invoke("import", tmp_path / "in", *options).stdout)
    assert done["function_kept"] is kept
    assert {stored.type for stored in inspect_model(out).headers.values()} == {"BF16"}
    assert model_digest(load_model(out)[0]) == done["digest"]
    assert transformers.AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def test_import_writes_nothing_where_it_fails(tmp_path: Path) -> None:
    make_folder(tmp_path / "in", "llama", shard="20KB")
    last = sorted((tmp_path / "in").glob("*.safetensors"))[-1]
    tensors = load_file(last)
    next(iter(tensors.values())).flatten()[0] = float("nan")
    save_file(tensors, last, {"format": "pt"})
    result = invoke("import", tmp_path / "in", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "error: Expected finite weights" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_import_replaces_only_a_model_and_only_when_told(tmp_path: Path) -> None:
    make_folder(tmp_path / "in", "llama")
    out = tmp_path / "out"
    out.mkdir()
    assert invoke("import", tmp_path / "in", "--out", out).exit_code == 0  # empty
    before = (out / "config.json").read_bytes()
    refused = invoke("import", tmp_path / "in", "--out", out, "--experts", 2)
    assert refused.exit_code == 2
    assert "--replace" in refused.stderr
    assert (out / "config.json").read_bytes() == before
    assert (
        invoke("import", tmp_path / "in", "--out", out, "--experts", 2, "--replace").exit_code == 0
    )
    assert (out / "config.json").read_bytes() != before
    (out / "thesis").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("a")
    for place in (out, tmp_path / "other"):
        refused = invoke("import", tmp_path / "in", "--out", place, "--replace")
        assert "something else" in refused.stderr
    assert (tmp_path / "other" / "thesis.txt").exists()
    assert (out / "thesis").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["in", "--out", "in"], "apart from"),
        (["in", "--out", "in/out"], "apart from"),
        (["nowhere", "--out", "out"], "nowhere"),
        (["in", "--out", "out", "--noise", "0.1"], "--experts"),
        (["in", "--out", "out", "--experts", "1"], "2 experts"),
        (["in", "--out", "out", "--experts", "4", "--experts-per-token", "5"], "per token"),
        (["in", "--out", "out", "--dtype", "int4"], "--dtype"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "in", "llama")
    result = invoke("import", *arguments)
    assert result.exit_code == 2
    assert text in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
