"""The charts of a report: plain numbers in, SVG out.

Every colour is one of `COLOURS`. In a page a colour becomes the CSS variable of its name, so that
one drawing serves light and dark; on its own an SVG keeps the light values. No chart tells things
apart by colour alone: shape, position or a label always says the same.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Okabe and Ito's palette, with neutral tones; each value is unique, for `_themed` to recognise.
COLOURS = {
    "ink": "#1f2933",
    "muted": "#66727f",
    "rule": "#dde3e8",
    "surface": "#ffffff",
    "blue": "#0072b2",
    "sky": "#56b4e9",
    "green": "#009e73",
    "yellow": "#e69f00",
    "red": "#d55e00",
    "purple": "#a65a8c",
}
ARM_STYLES = {
    "base": ("muted", "D", True),
    "local": ("red", "s", True),
    "local_dp": ("red", "s", False),
    "federated": ("blue", "o", True),
    "federated_dp": ("blue", "o", False),
    "central": ("green", "^", True),
    "central_dp": ("green", "^", False),
}
"""Colour, marker and whether it is filled, by arm: one hue for one place, hollow where noised."""

PRESENCE_STYLES = {
    "in the sum": ("blue", "s", True),
    "dropped out": ("muted", "s", False),
    "refused": ("red", "X", True),
    "in a spoilt group": ("yellow", "D", True),
    "attempt aborted": ("muted", ".", True),
}
SERIES = ("blue", "sky", "green", "yellow", "red", "purple", "muted")
WIDTH = 9.6
MANY = 60
"""Rounds above which a chart has no room for each."""
FONT = "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "figure.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": COLOURS["ink"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["rule"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": COLOURS["surface"],
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.7,
    "xtick.color": COLOURS["rule"],
    "ytick.color": COLOURS["rule"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
}
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_TAG = re.compile(r"<[^>]*>")  # matplotlib escapes > in text and in attributes
_GROUP_ID = re.compile(r'^<g id="[^"]*"')


def render(
    name: str, label: str, draw: Callable[..., Figure], *data: Any, page: bool = True
) -> str:
    """Draw a chart as an SVG element; equal input gives equal bytes.

    Args:
        name: of the chart, unique in its page: it salts the identifiers inside the SVG.
        label: what the chart shows, for readers who do not see it.
        draw: one of this module's chart functions.
        *data: its arguments.
        page: for a page that defines the colours as variables; otherwise a file of its own.

    """
    buffer = io.StringIO()
    style: Any = {**STYLE, "svg.hashsalt": name}  # Any: the stubs list the keys of one version
    with rc_context(style):
        draw(*data).savefig(buffer, format="svg", metadata=NO_METADATA)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(
        "<svg ", f'<svg role="img" aria-label="{escape(label)}" '
    )
    if page:
        svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
        svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)
    return _TAG.sub(lambda tag: _themed(tag[0], page), svg)


def _themed(tag: str, page: bool) -> str:
    tag = _GROUP_ID.sub("<g", tag).replace("'DejaVu Sans'", FONT)
    if page and 'style="' in tag:
        for name, value in COLOURS.items():
            tag = tag.replace(value, f"var(--{name})")
    return tag


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
    figure = _figure(0.6 + 1.45 * rows)
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
    axes.set_title(_short(name, 18), pad=4)
    axes.set_title(f"{values[-1]:.2f}", loc="right", pad=4, color=colour)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.grid(axis="y")


def epsilons(spent: Sequence[float], charged: float | None) -> Figure:
    """Epsilon of the releases so far, after each round, against what the ledgers charged."""
    figure = _figure(2.5)
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
    figure = _figure(1.05 + 0.27 * len(grid))
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
            axes.plot(*zip(*cells, strict=True), linestyle="", label=state, **_marker(style, size))
    axes.set_xlim(-0.7, len(columns) - 0.3)
    axes.set_yticks(range(len(grid)), [_short(name, 28) for name in grid])
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
    figure = _figure(2.7)
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
    figure = _figure(0.6 + 0.27 * len(seconds))
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
    figure = _figure(0.75 + rows * (0.5 + 0.19 * len(shares)))
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    largest = max((max(row) for layers_ in shares.values() for row in layers_ if row), default=1.0)
    for axes in grid.flat[layers:]:
        axes.set_visible(False)
    for layer, axes in enumerate(grid.flat[:layers]):
        rows_here = [own[layer] if layer < len(own) else [] for own in shares.values()]
        _routing_panel(axes, rows_here, largest)
        axes.set_title(f"layer {layer}", pad=4)
    grid[0, 0].set_yticks(range(len(shares)), [_short(name, 24) for name in shares])
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


def arms(
    rows: Sequence[str], unseen: int, points: Mapping[str, Sequence[tuple[float, float]]]
) -> Figure:
    """Held-out loss by arm: a band of dots for each institution, whiskers of one sd.

    An untrained base far to the right would squeeze all else; it is then shown at the edge.

    Args:
        rows: means and institutions, from the top.
        unseen: index of the first row of institutions that did not train; len(rows) if none.
        points: (loss, sd) for each row by arm, in nats per token; nan where there is none.

    """
    figure = _figure(0.9 + 0.48 * len(rows))
    axes = figure.subplots()
    positions = [row + (0.45 if row >= unseen else 0.0) for row in range(len(rows))]
    edge = _edge(points)
    for index, (arm, values) in enumerate(points.items()):
        shift = 0.78 * ((index + 0.5) / len(points) - 0.5)
        _arm_dots(axes, arm, values, [y + shift for y in positions], edge)
    for y in positions:
        axes.axhspan(y - 0.46, y + 0.46, color=COLOURS["rule"], alpha=0.3, linewidth=0, zorder=0)
    axes.set_yticks(positions, [_short(name, 28) for name in rows])
    axes.set_ylim(positions[-1] + 0.6, -0.6)
    has_sd = any(sd for values in points.values() for _, sd in values)
    whiskers = "; whiskers: ± one sd over seeds" if has_sd else ""
    axes.set_xlabel(f"held-out loss (nats per token): left is better{whiskers}")
    axes.grid(axis="x")
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    figure.legend(handles=_arm_legend(points), loc="outside upper left", ncols=7, handletextpad=0.2)
    return figure


def _arm_dots(
    axes: Axes, arm: str, values: Sequence[tuple[float, float]], ys: Sequence[float], edge: float
) -> None:
    style = ARM_STYLES.get(arm, ("purple", "v", True))
    marker = _marker(style, 5.5)
    for (loss, sd), y in zip(values, ys, strict=True):
        if loss > edge:
            axes.plot([edge], [y], **{**marker, "marker": ">"})
            axes.annotate(
                f"{loss:.2f}",
                (edge, y),
                xytext=(-6, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=7,
                color=COLOURS[style[0]],
            )
            continue
        axes.plot([loss - sd, loss + sd], [y, y], color=COLOURS[style[0]], linewidth=1.3)
        axes.plot([loss], [y], **marker)


def _edge(points: Mapping[str, Sequence[tuple[float, float]]]) -> float:
    trained = [loss + sd for arm, row in points.items() if arm != "base" for loss, sd in row]
    trained = [value for value in trained if math.isfinite(value)]
    base = [loss for loss, _ in points.get("base", ()) if math.isfinite(loss)]
    if not trained or not base:
        return math.inf
    span = max(trained) - min(trained)
    return max(trained) + 0.12 * span if max(base) > max(trained) + span else math.inf


def _arm_legend(arms_: Mapping[str, object]) -> list[Line2D]:
    styles = [(arm, ARM_STYLES.get(arm, ("purple", "v", True))) for arm in arms_]
    return [
        Line2D([], [], linestyle="", label=arm.replace("_dp", " DP"), **_marker(style, 5.5))
        for arm, style in styles
    ]


def _marker(style: tuple[str, str, bool], size: float) -> dict[str, Any]:
    colour, marker, filled = style
    return {
        "marker": marker,
        "markersize": size,
        "color": COLOURS[colour],
        "markerfacecolor": COLOURS[colour if filled else "surface"],
        "markeredgecolor": COLOURS[colour],
    }


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), layout="constrained")


def _round_axis(axes: Axes, last: int, label: str) -> None:
    axes.set_xlabel("round")
    axes.set_ylabel(label)
    axes.set_xlim(0.3, last + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="y")


def _series_colours(count: int) -> list[str]:
    return [COLOURS[SERIES[index % len(SERIES)]] for index in range(count)]


def _short(name: str, length: int) -> str:
    if len(name) <= length:
        return name
    head = length // 2
    return f"{name[:head]}…{name[head + 1 - length :]}"  # names often differ in their end
