"""Chart of the study of epsilon, for `python -m benchmarks.utility`."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from arion.charts import COLOURS, render

Rows = Sequence[Mapping[str, Any]]
LINES = {"full": ("full training", "blue", "o"), "lora": ("LoRA", "red", "s")}
_FREE = "∞"


def svg(rows: Rows) -> str:
    """Draw held-out loss against epsilon, a panel per data set; equal input gives equal bytes."""
    label = "Held-out loss against epsilon, by data set and kind of training"
    return render("utility", label, _draw, rows, page=False)


def _draw(rows: Rows) -> Figure:
    names = list(dict.fromkeys(row["data_set"] for row in rows))
    figure = Figure(figsize=(3.6 * len(names), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        own = [row for row in rows if row["data_set"] == name]
        for kind, (label, colour, marker) in LINES.items():
            found = [row for row in own if row["kind"] == kind]
            axes.errorbar(
                [_FREE if row["epsilon"] is None else f"{row['epsilon']:g}" for row in found],
                [row["loss"] for row in found],
                yerr=[row["loss_sd"] or 0.0 for row in found],
                marker=marker,
                color=COLOURS[colour],
                label=label,
            )
        axes.axhline(own[0]["base"], linestyle=":", color="grey", label="base")
        axes.set_title(name)
        axes.set_xlabel("ε (∞: not private)")
        axes.set_ylabel("held-out loss (nats per token)")
        axes.grid(axis="y")
        axes.legend()
    return figure
