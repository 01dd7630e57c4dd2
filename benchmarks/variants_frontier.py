"""Size against loss: every number of experts, chosen for each domain, in every format of a tier.

    ARION_VARIANTS_MODEL=WORK/model python -m benchmarks.variants_frontier [--json PATH]

Ten minutes. WORK is what `python -m benchmarks.variants_model WORK` made; --quick takes a small
random model. For each domain the best experts of each layer by REAP on its training text stay, or a
random choice of as many. Each artefact is written, and its own weights are read back and evaluated
on that domain's held-out text (`benchmarks.variants` has what each runtime adds to that). The limit
is the parent's loss there.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from arion.progress import make_progress
from benchmarks.composition_data import LENGTH
from benchmarks.harness import Row, context, main
from benchmarks.variants import PACKAGES, Texts, ground, quick_ground
from models.decoder import Decoder
from models.evaluate import evaluate
from models.tokenizer import Row as TextRow
from models.tokenizer import Tokenizer
from models.variants.check import spread_rows
from models.variants.experts import best, everything, expert_use, prune
from models.variants.kinds import KINDS, files_of
from models.variants.names import Container
from models.variants.plan import Plan, Wanted, fitting_plans

FORMATS: dict[Container, tuple[str, ...]] = {
    "gguf": ("f16", "q8_0", "q4_k_m"),
    "onnx": ("int8", "int4"),
}
_CALIBRATION_ROWS, HELDOUT_ROWS = 256, 120


@dataclass(frozen=True)
class Ground:
    """What is exported, and the text of each domain."""

    model: Decoder
    tokenizer: Tokenizer
    train: Texts
    heldout: Texts


def run(quick: bool) -> Iterator[Row]:
    """Yield a row for each artefact."""
    torch.set_num_threads(1)
    found = Ground(*(quick_ground() if quick else ground()))
    config = found.model.config
    kept = sorted(
        {config.experts_per_token, config.experts // 2, 3 * config.experts // 4, config.experts}
    )
    progress = make_progress()
    progress.stage("domains", len(found.train))
    for done, domain in enumerate(found.train, start=1):
        yield from _domain(found, domain, kept)
        progress.step(done, domain)
    progress.close()


def _domain(ground: Ground, domain: str, kept: list[int]) -> Iterator[Row]:
    config = ground.model.config
    rows = spread_rows(ground.tokenizer, ground.train[domain], LENGTH, _CALIBRATION_ROWS)
    heldout = spread_rows(ground.tokenizer, ground.heldout[domain], LENGTH, HELDOUT_ROWS)
    whole = evaluate(ground.model, heldout).nats_per_token
    scores_LE = {
        "REAP": expert_use(ground.model, rows).reap_LE,
        "random": torch.rand(
            config.layers, config.experts, generator=torch.Generator().manual_seed(0)
        ),
    }
    for (how, scores), experts in product(scores_LE.items(), kept):
        if how == "random" and experts == config.experts:
            continue
        chosen = best(everything(config), scores, experts)
        model = prune(ground.model, chosen) if experts < config.experts else ground.model
        for plan in plans_of(ground, model):
            loss, size = loss_of(ground, model, plan, heldout)
            details = {"bytes": size, "domain": domain, "experts": experts, "chosen_by": how}
            yield Row(
                f"{plan.container} {plan.number_format}, {experts} experts by {how}: {domain}",
                loss, "nats/token", limit="parent", limit_value=whole, ratio_to_limit=loss / whole,
                context=context(
                    PACKAGES, **details, of_experts=config.experts,
                    format=f"{plan.container} {plan.number_format}",
                ),
            )  # fmt: skip


def plans_of(ground: Ground, model: Decoder) -> Iterator[Plan]:
    """Yield a plan for each format of `FORMATS`."""
    for container, formats in FORMATS.items():
        for bits in KINDS[container].number_formats:
            wanted = Wanted("edge", container, bits)
            for plan in fitting_plans(
                model.config, ground.model.config.experts, ground.tokenizer, wanted
            ):
                if plan.number_format in formats:
                    yield plan


def loss_of(
    ground: Ground, model: Decoder, plan: Plan, heldout: Sequence[TextRow]
) -> tuple[float, int]:
    """Write an artefact; return the loss of the weights in it, and the bytes of its files."""
    kind = KINDS[plan.container]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "artefact"
        kind.write(model, ground.tokenizer, place, plan.number_format, lambda *done: None)
        size = sum(path.stat().st_size for path in files_of(place))
        found = kind.read_back(place, model).model
    return evaluate(found, heldout).nats_per_token, size


if __name__ == "__main__":
    main(run)
