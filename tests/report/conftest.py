"""Realistic reports: a simulation of seven institutions, a comparison of seven arms on nine."""

import math
import random
from typing import Any

import pytest

NAMES = ("adler", "birch", "cedar", "dogwood", "elm", "fir", "gorse")
UNSEEN = ("hazel", "iris")
ROUNDS = 20
ARMS = {
    "base": 6.1,
    "local": 2.45,
    "local_dp": 3.6,
    "federated": 2.1,
    "central": 2.05,
    "federated_dp": 2.4,
    "central_dp": 2.3,
}


def _institutions(unseen: bool) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "label": f"{name.capitalize()} Hospital, ward {index}",
            "records": 1200 + 37 * index,
            "units": 300 + index,
            "unit": "patient",
            "heldout_records": 120,
            "unseen": name in UNSEEN,
        }
        for index, name in enumerate((*NAMES, *UNSEEN) if unseen else NAMES)
    ]


def _attempt(draw: random.Random, number: int, attempt: int, code: str = "") -> dict[str, Any]:
    out = {name for name in NAMES if draw.random() < 0.08}
    refused = {"cedar": ["plan.epsilon", "asks for more than 2.0"]} if number == 13 else {}
    steps = ("upload", "survivors", "unmask", "open", "ledger")
    return {
        "round": number,
        "attempt": attempt,
        "survivors": [] if code else [name for name in NAMES if name not in out | set(refused)],
        "code": code,
        "refusals": refused,
        "seconds": {
            step: draw.uniform(0.1, 0.5) * (8 if step == "upload" else 1)
            for step in (steps[:2] if code else steps)
        },
        "sent_bytes": draw.randint(8_000_000, 9_000_000),
        "received_bytes": draw.randint(15_000_000, 17_000_000),
        "near_edge": 0,
    }


def _attempts(draw: random.Random) -> list[dict[str, Any]]:
    attempts = []
    for number in range(1, ROUNDS + 1):
        if number in (5, 14):
            attempts.append(_attempt(draw, number, 1, "too_few_survivors"))
        attempts.append(_attempt(draw, number, 2 if number in (5, 14) else 1))
    return attempts


def _losses(start: float, end: float) -> list[float]:
    return [end + (start - end) * math.exp(-at / 5) for at in range(ROUNDS + 1)]


def _routing(draw: random.Random) -> dict[str, list[list[float]]]:
    def shares() -> list[float]:
        weights = [draw.gammavariate(0.8, 1) for _ in range(8)]
        return [weight / sum(weights) for weight in weights]

    return {name: [shares() for _ in range(4)] for name in NAMES}


def _arm(draw: random.Random, loss: float, seeds: int, unseen: bool) -> dict[str, Any]:
    names = (*NAMES, *UNSEEN) if unseen else NAMES
    losses = {
        name: loss + 0.1 * index + draw.uniform(-0.1, 0.1) for index, name in enumerate(names)
    }
    means = {"mean": sum(losses[name] for name in NAMES) / len(NAMES)}
    if unseen:
        means["unseen"] = sum(losses[name] for name in UNSEEN) / len(UNSEEN)
    arm: dict[str, Any] = {
        "heldout_loss": means | losses,
        "learning_rate": 0.003,
        "seeds": seeds,
        "seconds": 91.5,
    }
    if seeds > 1:
        arm["heldout_loss_sd"] = {key: draw.uniform(0.01, 0.06) for key in arm["heldout_loss"]}
    return arm


@pytest.fixture
def simulation() -> dict[str, Any]:
    draw = random.Random(1)
    return {
        "kind": "simulation",
        "title": "Seven hospitals, one model",
        "version": "0.1.0",
        "created": "2026-11-25T12:00:00Z",
        "arms": {"federated_dp": _arm(draw, 2.4, 1, unseen=False)},
        "epsilon": dict.fromkeys(NAMES, 1.934),
        "epsilon_if_all_others_collude": 4.771,
        "delta": 1e-5,
        "noise": "seeded, not private",
        "rounds": ROUNDS,
        "seconds": 183.4,
        "loss_per_round": _losses(6.1, 2.7)[1:],
        "loss_by_institution_per_round": {
            name: _losses(6.1 + 0.05 * index, 2.4 + 0.1 * index) for index, name in enumerate(NAMES)
        },
        "epsilon_per_round": [1.934 * math.sqrt(at / ROUNDS) for at in range(1, ROUNDS + 1)],
        "attempts": _attempts(draw),
        "routing": _routing(draw),
        "phases_s": {"data": 3.1, "warm_up": 22.4, "rounds": 140.2, "evaluation": 17.7},
        "mechanism": {
            "noise_multiplier": 1.1237,
            "clipping_norm": 0.5,
            "sampling_probability": 0.0625,
            "expected_batch": 128.5,
            "releases": ROUNDS,
            "honest_survivors": 4,
            "n_min": 5,
            "colluders": 1,
            "ring_bits": 16,
        },
        "model": {
            "name": "arion-tiny",
            "parameters": 5_204_992,
            "trainable": 131_072,
            "digest": "5f" * 32,
            "recipe": "LoRA rank 8 on attention",
        },
        "institutions": _institutions(unseen=False),
        "ledger": {
            "coordinator_entries": 67,
            "fingerprints": {name: f"arion:{index:04x}-9c1e" for index, name in enumerate(NAMES)},
        },
    }


@pytest.fixture
def comparison(simulation: dict[str, Any]) -> dict[str, Any]:
    draw = random.Random(2)
    kept = ("version", "created", "epsilon", "delta", "noise", "rounds", "mechanism", "model")
    return {key: simulation[key] for key in kept} | {
        "kind": "comparison",
        "title": "What privacy costs, and what sharing brings",
        "seconds": 1912.0,
        "arms": {name: _arm(draw, loss, 3, unseen=True) for name, loss in ARMS.items()},
        "institutions": _institutions(unseen=True),
    }
