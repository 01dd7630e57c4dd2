"""What epsilon costs: held-out loss at epsilon 1, 3, 8 and without privacy, full and LoRA training.

    python -m benchmarks.utility --data DATA --work WORK [--json PATH] [--chart PATH] [--set NAME]

Every cell is a comparison of one arm (`arion.compare`): central DP-SGD, whose loss federated
training meets within 0.4% (docs/results/medquad.md), by the engine and the optimiser of a node and
a coordinator. Rates are chosen on validation by factors of two, for every cell by itself. What is
finished in WORK is not done again; `--set` does one data set, so that two can be done at once.
"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arion.base_model import prepare_base
from arion.compare import Comparison
from arion.progress import make_progress
from arion.run_file import (
    CompareSection,
    DataSection,
    FederationSection,
    ModelSection,
    PrivacySection,
    RunFile,
    TrainingSection,
)
from benchmarks.harness import context
from benchmarks.utility_chart import svg
from models.training_settings import WarmUp
from privacy.ledger.files import replace_durably

EPSILONS = (1.0, 3.0, 8.0, math.inf)
KINDS = ("full", "lora")
PUBLIC = ("ebooks", "openstax", "wikitext2")
_RATES = {"full": 8e-3, "lora": 1.6e-2}  # where the search begins


@dataclass(frozen=True)
class DataSet:
    """Private text of the study.

    Attributes:
        folder: under DATA. config: its data.toml. nodes: None for one per institution.

    """

    folder: str
    config: str
    nodes: int | None = None


SETS: Mapping[str, DataSet] = {
    "medquad": DataSet(
        "medquad",
        'text_fields = ["question", "answer"]\ntemplate = "Q: {question}\\nA: {answer}"\n'
        'group_field = "topic"\n',
    ),
    "cuad": DataSet("cuad", 'text_fields = ["text"]\ngroup_field = "contract"\n', nodes=4),
}


@dataclass(frozen=True)
class Effort:
    """How much is trained and evaluated, the same in every cell."""

    rounds: int = 10
    expected_batch: float = 128.0
    seeds: int = 2
    evaluated: int = 60
    base_steps: int = 900


QUICK = Effort(rounds=2, expected_batch=16.0, seeds=1, evaluated=8, base_steps=5)


@dataclass(frozen=True)
class Cell:
    """One entry of the table."""

    data_set: str
    kind: str
    epsilon: float

    @property
    def name(self) -> str:
        """Name of the cell's folder."""
        return f"{self.kind}-{self.epsilon:g}"


def cells(data_set: str) -> Iterator[Cell]:
    """Yield the cells of a data set."""
    for kind in KINDS:
        for epsilon in EPSILONS:
            yield Cell(data_set, kind, epsilon)


def run_file(cell: Cell, data: Path, work: Path, effort: Effort) -> RunFile:
    """Return the comparison that a cell is; its data.toml is written into `work`."""
    chosen = SETS[cell.data_set]
    config = work / f"{cell.data_set}.data.toml"
    replace_durably(config, chosen.config.encode())
    private = math.isfinite(cell.epsilon)
    return RunFile(
        data=DataSection(
            path=data / chosen.folder, config=config, evaluate_records=effort.evaluated
        ),
        model=ModelSection(base=str(work / "base")),
        training=TrainingSection(
            kind=cell.kind,
            rounds=effort.rounds,
            expected_batch=effort.expected_batch,
            learning_rate=_RATES[cell.kind],
        ),
        privacy=PrivacySection(enabled=private, epsilon=cell.epsilon if private else 8.0),
        federation=FederationSection(nodes=chosen.nodes),
        compare=CompareSection(
            seeds=effort.seeds, arms=("central_dp",) if private else ("central",)
        ),
    )


def measure(cell: Cell, data: Path, work: Path, effort: Effort) -> dict[str, Any]:
    """Train and evaluate a cell, or read what it came to."""
    home = work / cell.data_set / cell.name
    report = home / "report.json"
    if not report.exists():
        Comparison(run_file(cell, data, work, effort), home, make_progress()).run()
    arms = json.loads(report.read_text())["arms"]
    (arm,) = (arms[name] for name in arms if name != "base")
    return {
        "data_set": cell.data_set,
        "kind": cell.kind,
        "epsilon": cell.epsilon if math.isfinite(cell.epsilon) else None,
        "base": arms["base"]["heldout_loss"]["mean"],
        "loss": arm["heldout_loss"]["mean"],
        "loss_sd": arm.get("heldout_loss_sd", {}).get("mean"),
        "learning_rate": arm["learning_rate"],
    }


def with_gaps(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to every row what its epsilon costs: its loss less that without privacy."""
    free = {(r["data_set"], r["kind"]): r["loss"] for r in rows if r["epsilon"] is None}
    return [{**row, "gap": row["loss"] - free[row["data_set"], row["kind"]]} for row in rows]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay the rows out as Markdown, a line per data set and kind."""
    lines = [
        "| data | training | base | " + " | ".join(f"ε = {e:g}" for e in EPSILONS) + " |",
        "|---|---|" + "---:|" * (1 + len(EPSILONS)),
    ]
    for data_set in dict.fromkeys(row["data_set"] for row in rows):
        for kind in KINDS:
            own = [r for r in rows if (r["data_set"], r["kind"]) == (data_set, kind)]
            found = [f"{row['loss']:.3f} ({row['gap']:+.3f})" for row in own]
            lines.append(f"| {data_set} | {kind} | {own[0]['base']:.3f} | {' | '.join(found)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study, or one data set of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--work", type=Path, required=True, help="where models are kept")
    parser.add_argument("--set", choices=SETS, help="only this data set")
    parser.add_argument("--json", type=Path, help="write the losses to this file")
    parser.add_argument("--chart", type=Path, help="draw them into this file")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args(argv)
    effort = QUICK if options.quick else Effort()
    claim(options.work, effort)
    _make_base(options.data, options.work, effort)
    names = [options.set] if options.set else list(SETS)
    rows = with_gaps(
        [
            measure(cell, options.data, options.work.resolve(), effort)
            for name in names
            for cell in cells(name)
        ]
    )
    print(table(rows))
    if options.json:
        command = "python -m benchmarks.utility --data DATA --work WORK"
        document = {"rows": rows, "effort": vars(effort), **context(["torch"], command=command)}
        replace_durably(options.json, (json.dumps(document, indent=1) + "\n").encode())
    if options.chart:
        replace_durably(options.chart, svg(rows).encode())


def claim(work: Path, effort: Effort) -> None:
    """Make a work folder, or go on in one of the same effort.

    Raises:
        ValueError: what lies there was made with another.

    """
    work.mkdir(parents=True, exist_ok=True)
    note, text = work / "effort.json", json.dumps(vars(effort), indent=1) + "\n"
    if not note.exists():
        replace_durably(note, text.encode())
    elif note.read_text() != text:
        raise ValueError(
            f"Expected the work of the same effort in {work}, got another's. Choose another --work."
        )


def _make_base(data: Path, work: Path, effort: Effort) -> None:
    """One public model for all cells."""
    progress = make_progress()
    progress.stage("base", effort.base_steps)
    prepare_base(
        work / "base",
        ModelSection(warm_up=WarmUp(steps=effort.base_steps)),
        [data / name for name in PUBLIC],
        seed=0,
        progress=lambda step, _, loss: progress.step(step, f"loss {loss:.3f}"),
    )
    progress.close()


if __name__ == "__main__":
    main()
