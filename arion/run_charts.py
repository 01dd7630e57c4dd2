"""The charts of a run: its loss, its budget, who took part, its traffic, its time, its experts.

Plain numbers in, a figure out; `arion.charts.render` makes SVG of it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from arion.charts import COLOURS, SERIES, figure_of, marker, shorten

PRESENCE_STYLES = {
    "in the sum": ("blue", "s", True),
    "dropped out": ("muted", "s", False),
    "refused": ("red", "X", True),
    "in a spoilt group": ("yellow", "D", True),
    "attempt aborted": ("muted", ".", True),
}
MANY = 60
"""Rounds above which a chart has no room for each."""


def losses(by_institution: Mapping[str, Sequence[float]], mean: Sequence[float]) -> Figure:
    """Held-out loss over rounds: a panel per institution, the others behind it in grey.

    Args:
        by_institution: rounds + 1 losses each, in nats per token; the first is before round 1.
        mean: the mean of the seen institutions after each round, or empty.

    """
    panels = [(name, range(len(values)), values) for name, values in by_institution.items()]
    if mean:
        panels.insert(0, ("mean", range(1, len(mean) + 1), mean))
    columns = min(4 if len(panels) <= 12 else 5, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = figure_of(0.6 + 1.45 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for number, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
        _loss_panel(axes, panel, panels[1:] if mean else panels)
        axes.tick_params(labelbottom=number + columns >= len(panels))
    figure.supxlabel("round (0: before training)", color=COLOURS["muted"])
    figure.supylabel("held-out loss (nats per token)", color=COLOURS["muted"])
    return figure


def _loss_panel(
    axes: Axes, panel: tuple[str, range, Sequence[float]], others: Sequence[Any]
) -> None:
    name, rounds, values = panel
    for _, other_rounds, other_values in others:
        axes.plot(other_rounds, other_values, color=COLOURS["rule"], linewidth=0.9)
    colour = COLOURS["ink" if name == "mean" else "blue"]
    axes.plot(rounds, values, color=colour, linewidth=1.9)
    axes.plot(rounds[-1:], values[-1:], "o", color=colour, markersize=3.5)
    axes.set_title(shorten(name, 18), pad=4)
    axes.set_title(f"{values[-1]:.2f}", loc="right", pad=4, color=colour)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.grid(axis="y")


def epsilons(spent: Sequence[float], charged: float | None) -> Figure:
    """Epsilon of the releases so far, after each round, against what the ledgers charged."""
    figure = figure_of(2.5)
    axes = figure.subplots()
    rounds = range(1, len(spent) + 1)
    dots = 3 if len(spent) <= MANY else 0
    axes.plot(rounds, spent, "o-", color=COLOURS["blue"], markersize=dots, linewidth=1.9)
    axes.annotate(
        f"released: {spent[-1]:.3g}",
        (len(spent), spent[-1]),
        xytext=(0, -14),
        textcoords="offset points",
        ha="right",
        color=COLOURS["blue"],
    )
    if charged is not None:
        axes.axhline(charged, color=COLOURS["red"], linestyle="--", linewidth=1.3)
        style: dict[str, Any] = {"xytext": (2, 4), "textcoords": "offset points"}
        text = f"charged to the ledgers: {charged:.3g}"
        axes.annotate(text, (1, charged), color=COLOURS["red"], **style)
    axes.set_ylim(0, 1.18 * max(1e-6, *spent, charged or 0.0))
    _round_axis(axes, len(spent), "ε")
    return figure


def presence(columns: Sequence[str], grid: Mapping[str, Sequence[str]]) -> Figure:
    """Who took part: a row per institution, a column per attempt.

    Args:
        columns: the attempts' names.
        grid: for each institution the keys of `PRESENCE_STYLES`, one per attempt.

    """
    figure = figure_of(1.05 + 0.27 * len(grid))
    axes = figure.subplots()
    room = min(9.0, 320 / len(columns))
    for state, style in PRESENCE_STYLES.items():
        cells = [
            (x, y)
            for y, row in enumerate(grid.values())
            for x, cell in enumerate(row)
            if cell == state
        ]
        size = room if state == "in the sum" else max(room, 4.0)  # exceptions stay visible
        if cells:
            axes.plot(*zip(*cells, strict=True), linestyle="", label=state, **marker(style, size))
    axes.set_xlim(-0.7, len(columns) - 0.3)
    axes.set_yticks(range(len(grid)), [shorten(name, 28) for name in grid])
    axes.set_ylim(len(grid) - 0.4, -0.6)
    step = next(step for step in (1, 2, 5, 10, 20, 50, len(columns)) if len(columns) <= 30 * step)
    axes.set_xticks(range(0, len(columns), step), columns[::step])
    axes.set_xlabel("round (round.attempt where it was repeated)")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.legend(loc="outside upper left", ncols=4, handletextpad=0.3, columnspacing=1.6)
    return figure


def stacked_rounds(
    rounds: Sequence[int], series: Mapping[str, Sequence[float]], unit: str
) -> Figure:
    """Bars per round, stacked by series; `unit` labels the axis."""
    figure = figure_of(2.7)
    axes = figure.subplots()
    bottom = [0.0] * len(rounds)
    for (name, values), colour in zip(series.items(), _series_colours(len(series)), strict=True):
        style: dict[str, Any] = {"color": colour, "edgecolor": COLOURS["surface"], "linewidth": 0.5}
        axes.bar(rounds, values, 0.78, bottom=bottom, label=name, **style)
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    _round_axis(axes, rounds[-1], unit)
    figure.legend(loc="outside upper left", ncols=len(series), handlelength=1, columnspacing=1.6)
    return figure


def phases(seconds: Mapping[str, float]) -> Figure:
    """The phases of a run, a bar for each, labelled with its seconds."""
    figure = figure_of(0.6 + 0.27 * len(seconds))
    axes = figure.subplots()
    bars = axes.barh(range(len(seconds)), list(seconds.values()), 0.66, color=COLOURS["blue"])
    axes.bar_label(bars, [f"{value:.1f} s" for value in seconds.values()], padding=4)
    axes.set_yticks(range(len(seconds)), list(seconds))
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("time (s)")
    axes.grid(axis="x")
    axes.tick_params(length=0)
    return figure


def routing(shares: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Shares of tokens by expert: a panel per layer, a row per institution.

    Args:
        shares: [layer][expert] for each institution; every institution has the same layers.

    """
    layers = max(map(len, shares.values()))
    columns = min(4, layers)
    rows = math.ceil(layers / columns)
    figure = figure_of(0.75 + rows * (0.5 + 0.19 * len(shares)))
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    largest = max((max(row) for layers_ in shares.values() for row in layers_ if row), default=1.0)
    for axes in grid.flat[layers:]:
        axes.set_visible(False)
    for layer, axes in enumerate(grid.flat[:layers]):
        rows_here = [own[layer] if layer < len(own) else [] for own in shares.values()]
        _routing_panel(axes, rows_here, largest)
        axes.set_title(f"layer {layer}", pad=4)
    grid[0, 0].set_yticks(range(len(shares)), [shorten(name, 24) for name in shares])
    grid[0, 0].set_ylim(len(shares) - 0.5, -0.5)
    figure.supxlabel("expert", color=COLOURS["muted"])
    figure.legend(
        handles=_share_legend(largest), loc="outside upper left", ncols=5, handlelength=1.4
    )
    return figure


def _routing_panel(axes: Axes, rows: Sequence[Sequence[float]], largest: float) -> None:
    for y, row in enumerate(rows):
        for x, share in enumerate(row):
            corner = (x - 0.47, y - 0.44)
            axes.add_patch(Rectangle(corner, 0.94, 0.88, **_shade(share / (largest or 1.0))))
    axes.set_xlim(-0.5, max(1, *map(len, rows)) - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _shade(depth: float) -> dict[str, Any]:
    """Depth of colour by opacity: it reads on a light ground and on a dark one."""
    return {"facecolor": COLOURS["blue"], "linewidth": 0, "alpha": 0.04 + 0.96 * round(depth, 3)}


def _share_legend(largest: float) -> list[Patch]:
    return [
        Patch(
            label=f"{depth * largest:.0%}" + (" of tokens" if depth == 1 else ""), **_shade(depth)
        )
        for depth in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]


def _round_axis(axes: Axes, last: int, label: str) -> None:
    axes.set_xlabel("round")
    axes.set_ylabel(label)
    axes.set_xlim(0.3, last + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="y")


def _series_colours(count: int) -> list[str]:
    return [COLOURS[SERIES[index % len(SERIES)]] for index in range(count)]
