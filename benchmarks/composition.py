"""The FlexOlmo result in small: how good a model are experts that never trained together.

Four owners (medical, legal, finance, code) each train experts of their own against one frozen
public model; the modules are concatenated. Compared with the public model, each owner's alone,
averaging their outputs, averaging their weights, tuning the composed router on public text, and
training the same shape on all text pooled. Then one owner after the other opts out.

    python -m benchmarks.composition --data DIR --work DIR [--json PATH] [--chart PATH] [--quick]

Everything trained is kept in the work folder: a run that was stopped goes on where it was.

Source: FlexOlmo (arXiv 2507.07024).
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

from benchmarks.composition_chart import svg
from benchmarks.composition_data import LENGTH, OWNERS, PUBLIC, read_texts
from benchmarks.composition_study import (
    MORE,
    Logs,
    Losses,
    Study,
    mean_output_losses,
    target_logs,
    weight_average,
)
from benchmarks.harness import context
from models.composition import compose
from models.counts import parameter_counts
from models.decoder import Decoder
from models.durable import write_whole
from models.evaluate import expert_shares
from models.owner_training import OwnerRecipe
from models.training_settings import WarmUp

DOMAINS = (PUBLIC, *OWNERS)


def arms(study: Study) -> dict[str, Callable[[], Losses]]:
    """Every arm by name, in the table's order; each trains what it needs and is not there."""

    def alone(owner: str) -> Decoder:
        return compose(study.base, [study.module(owner)])

    @cache
    def logs(train: Callable[..., Decoder], *arguments: object) -> Logs:
        return target_logs(train(*arguments), study.rows)

    def one(train: Callable[..., Decoder], *arguments: object) -> Callable[[], Losses]:
        return lambda: mean_output_losses([logs(train, *arguments)])

    def public() -> Decoder:
        return study.base

    def mean_outputs(train: Callable[[str], Decoder]) -> Callable[[], Losses]:
        return lambda: mean_output_losses([logs(public), *(logs(train, o) for o in OWNERS)])

    def mean_weights(train: Callable[[str], Decoder]) -> Callable[[], Losses]:
        def measure() -> Losses:
            average = weight_average([train(owner) for owner in OWNERS])
            return mean_output_losses([target_logs(average, study.rows)])

        return measure

    return {
        "public only": one(public),
        **{f"{owner} alone": one(alone, owner) for owner in OWNERS},
        "outputs averaged": mean_outputs(alone),
        "weights averaged": mean_weights(alone),
        "composed": one(study.composed),
        f"composed, {MORE} per token": one(study.composed, "", MORE),
        "router tuned on public text": one(study.tuned, PUBLIC),
        "router tuned on generated text": one(study.tuned, "generated"),
        "router tuned on the owners' text": one(study.tuned, "owners"),
        **{f"composed without {owner}": one(study.composed, owner) for owner in OWNERS},
        "pooled training": one(study.pooled),
        **{f"{owner} alone, full training": one(study.full, owner) for owner in OWNERS},
        "full training, outputs averaged": mean_outputs(study.full),
        "full training, weights averaged": mean_weights(study.full),
    }


def run(study: Study) -> dict[str, Losses]:
    """Measure every arm that is not in the work folder's `losses.json` yet."""
    path = study.work / "losses.json"
    measured: dict[str, Losses] = json.loads(path.read_text()) if path.exists() else {}
    found = arms(study)
    for name, measure in found.items():
        if name not in measured:
            measured[name] = measure()
            write_whole(path, json.dumps(measured, indent=1).encode())
        print(line(name, measured[name]), flush=True)
    return {name: measured[name] for name in found}


def line(name: str, found: Losses) -> str:
    """One row of the table."""
    means = sum(found.values()) / len(found), sum(found[o] for o in OWNERS) / len(OWNERS)
    cells = [f"{value:.3f}" for value in (*means, *(found[domain] for domain in DOMAINS))]
    return f"| {name} | " + " | ".join(cells) + " |"


def routing(study: Study, composed: Decoder) -> dict[str, dict[str, float]]:
    """Share of the tokens' router weight that goes to each owner, by domain, mean over layers."""
    owners = [PUBLIC, *sorted(OWNERS)]
    shares = {}
    for domain, rows in study.rows.items():
        share_LE = expert_shares(composed, rows, LENGTH)
        share_O = share_LE.unflatten(1, (len(owners), -1)).sum(-1).mean(0)
        shares[domain] = dict(zip(owners, share_O.tolist(), strict=True))
    return shares


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--work", type=Path, required=True, help="where models are kept")
    parser.add_argument("--json", type=Path, help="write the losses to this file")
    parser.add_argument("--chart", type=Path, help="draw them into this file")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    training = WarmUp(steps=5 if options.quick else 150, learning_rate=2e-3, balance=0.0, z=0.0)
    study = Study(
        work=options.work,
        texts=read_texts(options.data),
        base_steps=10 if options.quick else 1200,
        tuning_steps=5 if options.quick else 100,
        recipe=OwnerRecipe(sources=(0, 1, 2, 3), public_share=0.2, training=training),
    )
    study.claim_folder()
    measured = run(study)
    if options.json:
        write_whole(options.json, (json.dumps(document(study, measured), indent=1) + "\n").encode())
    if options.chart:
        write_whole(options.chart, svg(measured, DOMAINS).encode())


def document(study: Study, measured: dict[str, Losses]) -> dict[str, object]:
    """Everything the page says, for programs."""
    composed = study.composed()
    return {
        "unit": "held-out nats per token",
        "losses": measured,
        "router weight of the composed model": routing(study, composed),
        "parameters": {
            "base": vars(parameter_counts(study.base.config)),
            "composed": vars(parameter_counts(composed.config)),
        },
        "tokens": {
            "per step": 16 * 128,
            "base steps": study.base_steps,
            "steps per owner": study.recipe.training.steps,
            "pooled steps": len(OWNERS) * study.recipe.training.steps,
            "router tuning steps": study.tuning_steps,
            "training text": {domain: len(stream) for domain, stream in study.streams.items()},
            "held out": {
                domain: sum(len(row.ids) - 1 for row in rows) for domain, rows in study.rows.items()
            },
        },
        "recipe": study.recipe.model_dump(mode="json"),
        **context(
            ["torch", "tokenizers", "safetensors"],
            command="python -m benchmarks.composition --data DATA --work WORK",
        ),
    }


if __name__ == "__main__":
    main()
