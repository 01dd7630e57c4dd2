"""A small model that learned its members by heart, without noise, and one that never saw them."""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import torch

from arion.audit_secrets import PlantedSecret
from models.checkpoint import save_model
from models.config import ModelConfig
from models.decoder import Decoder
from models.tokenizer import Tokenizer, stack_rows

WORDS = ("red", "blue", "old", "cat", "dog", "tree", "walks", "sees", "finds", "near", "the", "of")
MEMBERS, OTHERS, STEPS = 48, 64, 70
SECRETS = 4


@dataclass(frozen=True)
class Learned:
    """What was trained on and what was not; folders of the model after and before."""

    members: tuple[str, ...]
    others: tuple[str, ...]
    planted: tuple[PlantedSecret, ...]
    never_planted: tuple[PlantedSecret, ...]
    after: Path
    before: Path


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    draw = Random(5)
    texts = [" ".join(draw.choices(WORDS, k=14)) for _ in range(MEMBERS + OTHERS)]
    planted, never = ([secret(draw, number) for number in range(SECRETS)] for _ in range(2))
    inside = [f"{each.prompt}{each.secret}." for each in planted]
    members = (*texts[:MEMBERS], *inside)
    digits = " ".join("0123456789-")
    tokenizer = Tokenizer.train([*texts, digits, "The code of person 0 1 2 3 is "], 300)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, layers=1, heads=2, kv_heads=1,
        head_dim=16, experts=3, experts_per_token=2, expert_hidden_size=48, max_positions=128,
    )  # fmt: skip
    model = Decoder(config, torch.Generator().manual_seed(3))
    folder = tmp_path_factory.mktemp("learned")
    save_model(model, tokenizer, folder / "before")
    learn(model, tokenizer, [*members, *inside, *inside])  # secrets count thrice
    save_model(model, tokenizer, folder / "after")
    return Learned(
        members, tuple(texts[MEMBERS:]), tuple(planted), tuple(never),
        folder / "after", folder / "before",
    )  # fmt: skip


def secret(draw: Random, number: int) -> PlantedSecret:
    digits = "-".join(f"{draw.randrange(1000):03d}")
    return PlantedSecret(prompt=f"The code of person {number} is ", secret=digits)


def learn(model: Decoder, tokenizer: Tokenizer, texts: list[str]) -> None:
    rows = [row for (row,) in tokenizer.rows(texts, 64, 1)]
    token_BT, target_BT = stack_rows(rows, max(len(row.ids) for row in rows) - 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        loss = model.loss(token_BT, target_BT)
        optimiser.zero_grad()
        (loss.total_B.sum() / loss.tokens_B.sum()).backward()
        optimiser.step()


def write_records(path: Path, texts: tuple[str, ...]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path
