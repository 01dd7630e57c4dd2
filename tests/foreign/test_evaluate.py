"""`arion model evaluate` on a folder of another class."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from typer.testing import CliRunner, Result

from arion.cli import app
from models.tokenizer import Tokenizer
from tests.foreign.families import TEXTS

Family = Callable[[str], Path]


def evaluate(folder: Path, data: Path, *options: str) -> Result:
    given = ["model", "evaluate", str(folder), "--data", str(data), *options]
    return CliRunner().invoke(app, given)


def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@torch.no_grad()
def test_the_loss_is_what_the_class_itself_gives(family: Family, tmp_path: Path) -> None:
    folder = family("gemma3_text")
    done = evaluate(folder, text_file(tmp_path), "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["total"]
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    nats, tokens = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([0, *Tokenizer.load(folder).encode([text])[0], 0])
        log_TV = network.eval()(input_ids=ids[None, :-1]).logits[0].double().log_softmax(-1)
        nats -= float(log_TV.gather(1, ids[1:, None]).sum())
        tokens += len(ids) - 1
    assert found["tokens"] == tokens
    assert math.isclose(found["nats_per_token"], nats / tokens, rel_tol=1e-5)
    assert found["mean_active_experts"] == 0


def test_a_choice_of_experts_is_refused(family: Family, tmp_path: Path) -> None:
    done = evaluate(family("gpt2"), text_file(tmp_path), "--experts-per-token", "1")
    assert done.exit_code == 2
    assert "Expected a model of the Arion family to choose the number of experts" in done.stderr
