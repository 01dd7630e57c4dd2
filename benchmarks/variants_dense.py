"""Dense students: size against loss beside pruned experts, one student for all domains.

    ARION_VARIANTS_MODEL=WORK/model python -m benchmarks.variants_dense [--json PATH]

A quarter of an hour. WORK is what `python -m benchmarks.variants_model WORK` made; --quick
takes a small random model. Experts and layers are chosen on all domains' training text and the
student is distilled on it, from the whole parent. Each artefact is written, its own weights are
read back and evaluated on each domain's held-out text. The limit is the parent's loss, the peer the
same student before any training. Rows read as those of `benchmarks.variants_frontier` do.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from arion.progress import Progress, make_progress
from benchmarks.composition_data import LENGTH
from benchmarks.harness import Row, context, main
from benchmarks.variants import PACKAGES, ground, quick_ground
from benchmarks.variants_frontier import FORMATS, HELDOUT_ROWS, Ground, loss_of, plans_of
from models.decoder import Decoder
from models.evaluate import evaluate
from models.pretrain import token_stream
from models.tokenizer import Row as TextRow
from models.variants.check import spread_rows
from models.variants.dense import block_influence, dense_student, most_influential
from models.variants.distil import Distilling, Learnt, distil, lesson_of
from models.variants.experts import best, everything, expert_use

SETTINGS = Distilling(steps=150, batch=16, sequence_length=128, learning_rate=1e-3)
QUICK = Distilling(steps=3, batch=2, sequence_length=16)
_CALIBRATION_ROWS = 64  # of each domain


@dataclass(frozen=True)
class Shape:
    """A student: experts of each layer in one, and layers."""

    joined: int
    layers: int

    @property
    def name(self) -> str:
        return f"dense of {self.joined} experts, {self.layers} layers"


def run(quick: bool) -> Iterator[Row]:
    """Yield a row for each artefact and domain."""
    torch.set_num_threads(1)
    found = Ground(*(quick_ground() if quick else ground()))
    settings = QUICK if quick else SETTINGS
    heldout = {
        name: spread_rows(found.tokenizer, texts, LENGTH, HELDOUT_ROWS)
        for name, texts in found.heldout.items()
    }
    whole = {name: evaluate(found.model, rows).nats_per_token for name, rows in heldout.items()}
    progress = make_progress()
    for shape in _shapes(found.model):
        student, before, learnt = _taught(found, shape, settings, progress)
        first = {name: evaluate(before, rows).nats_per_token for name, rows in heldout.items()}
        for row in _rows(found, shape, student, heldout, learnt):
            domain = str(row.context["domain"])
            yield Row(
                row.metric, row.value, row.unit, "the same, untrained", first[domain],
                first[domain] / row.value, limit="parent", limit_value=whole[domain],
                ratio_to_limit=row.value / whole[domain],
                context={**row.context, "steps": settings.steps},
            )  # fmt: skip
    progress.close()


def _shapes(model: Decoder) -> tuple[Shape, ...]:
    used, layers = model.config.experts_per_token, model.config.layers
    fewer = max(1, 2 * layers // 3)
    return Shape(used, layers), Shape(used, fewer), Shape(2 * used, layers)


def _taught(
    ground: Ground, shape: Shape, settings: Distilling, progress: Progress
) -> tuple[Decoder, Decoder, Learnt]:
    """Return a student, the same before training, and what training did."""
    parent, tokenizer = ground.model, ground.tokenizer
    rows = [
        row
        for texts in ground.train.values()
        for row in spread_rows(tokenizer, texts, LENGTH, _CALIBRATION_ROWS)
    ]
    use = expert_use(parent, rows)
    layers = most_influential(block_influence(parent, rows), shape.layers)
    every = best(everything(parent.config), use.reap_LE, shape.joined)
    chosen = tuple(every[layer] for layer in layers)
    student, before = (dense_student(parent, layers, chosen, use.mass_LE) for _ in range(2))
    texts = [text for part in ground.train.values() for text in part]
    lesson = lesson_of(token_stream(tokenizer, texts), settings.sequence_length)
    progress.stage(shape.name, settings.steps)
    learnt = distil(
        parent, student, lesson, settings,
        generator=torch.Generator().manual_seed(0),
        progress=lambda step, kl: progress.step(step, f"KL {kl:.3f}"),
    )  # fmt: skip
    return student, before, learnt


def _rows(
    ground: Ground,
    shape: Shape,
    student: Decoder,
    heldout: dict[str, list[TextRow]],
    learnt: Learnt,
) -> Iterator[Row]:
    for plan in plans_of(ground, student):
        if plan.container not in FORMATS:
            continue
        for domain, rows in heldout.items():
            loss, size = loss_of(ground, student, plan, rows)
            facts = context(
                PACKAGES, bytes=size, domain=domain, experts=shape.joined, layers=shape.layers,
                of_experts=ground.model.config.experts, chosen_by="distilled",
                format=f"{plan.container} {plan.number_format}",
                kl_before=learnt.before.kl, kl_after=learnt.after.kl,
            )  # fmt: skip
            name = f"{plan.container} {plan.number_format}, {shape.name}: {domain}"
            yield Row(name, loss, "nats/token", context=facts)


if __name__ == "__main__":
    main(run)
