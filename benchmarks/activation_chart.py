"""Chart of the study of active experts: `python -m benchmarks.activation_chart IN.json OUT.svg`."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from arion.charts import COLOURS, render

Rows = Sequence[Mapping[str, Any]]
# Checkpoint: where its loss and its mean active experts are in a row; colour, marker.
LINES = {
    "trained with random activation": ("value", "mean_active", "blue", "o"),
    "trained with all experts": ("peer_value", "mean_active_peer", "red", "s"),
    "trained for this k alone": ("limit_value", "mean_active", "green", "^"),
}


def svg(rows: Rows) -> str:
    """Draw held-out loss against mean active experts; equal input gives equal bytes."""
    label = "Held-out loss against the mean number of active experts, by training"
    return render("activation", label, _draw, rows, page=False)


def _draw(rows: Rows) -> Figure:
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for label, (loss, active, colour, marker) in LINES.items():
        points = sorted(
            (row["context"][active], row[loss]) for row in rows if row[loss] is not None
        )
        axes.plot(*zip(*points, strict=True), marker=marker, color=COLOURS[colour], label=label)
    axes.set_xlabel("mean active experts per token")
    axes.set_ylabel("held-out loss (nats per token)")
    axes.grid(axis="y")
    axes.legend()
    return figure


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(svg(json.loads(source.read_text())))
