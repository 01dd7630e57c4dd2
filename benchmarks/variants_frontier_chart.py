"""Size against loss as a chart.

python -m benchmarks.variants_frontier_chart IN.json [IN.json ...] OUT.svg
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from arion.charts import COLOURS, WIDTH, render

Rows = Sequence[Mapping[str, Any]]
STYLES = {
    "gguf f16": ("green", "o"),
    "gguf q8_0": ("blue", "s"),
    "gguf q4_k_m": ("red", "^"),
    "onnx int8": ("purple", "D"),
    "onnx int4": ("muted", "v"),
}
"""Format: colour, marker; filled where the experts were chosen, hollow where they are random, a
star where a dense student was distilled."""
_LINES = {"REAP": "-", "random": "", "distilled": ":"}


def svg(rows: Rows) -> str:
    """Draw a panel for each domain; equal input gives equal bytes."""
    label = "Held-out loss against the size of an artefact, by domain, format and number of experts"
    return render("variants", label, _draw, rows, page=False)


def _draw(rows: Rows) -> Figure:
    domains = list(dict.fromkeys(row["context"]["domain"] for row in rows))
    figure = Figure(figsize=(WIDTH, 2.3 * ((len(domains) + 1) // 2) + 0.6), layout="constrained")
    panels = figure.subplots((len(domains) + 1) // 2, 2, squeeze=False).flatten()
    for axes, domain in zip(panels, domains, strict=False):
        _panel(axes, [row for row in rows if row["context"]["domain"] == domain], domain)
    for axes in panels[len(domains) :]:
        axes.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=5, handletextpad=0.2)
    return figure


def _panel(axes: Axes, rows: Rows, domain: str) -> None:
    for name, (colour, marker) in STYLES.items():
        for how, line in _LINES.items():
            points = sorted(
                (row["context"]["bytes"] / 1e6, row["value"])
                for row in rows
                if row["context"]["format"] == name and row["context"]["chosen_by"] == how
            )
            if points:
                axes.plot(
                    *zip(*points, strict=True), linewidth=0.8, linestyle=line,
                    marker="*" if how == "distilled" else marker,
                    markersize=7 if how == "distilled" else 4.5, color=COLOURS[colour],
                    markerfacecolor=COLOURS[colour if how == "REAP" else "surface"],
                    label=name if how == "REAP" else None,
                )  # fmt: skip
    axes.axhline(rows[0]["limit_value"], color=COLOURS["rule"], linewidth=0.8, zorder=0)
    axes.set_title(domain, loc="left", fontsize=9)
    axes.set_xlabel("MB")
    axes.set_ylabel("nats per token")


if __name__ == "__main__":
    *sources, target = map(Path, sys.argv[1:])
    target.write_text(svg([row for source in sources for row in json.loads(source.read_text())]))
