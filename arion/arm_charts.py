"""The chart of a comparison: held-out loss by arm and institution.

Plain numbers in, a figure out; `arion.charts.render` makes SVG of it.
"""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from arion.charts import COLOURS, figure_of, marker, shorten

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
    figure = figure_of(0.9 + 0.48 * len(rows))
    axes = figure.subplots()
    positions = [row + (0.45 if row >= unseen else 0.0) for row in range(len(rows))]
    edge = _edge(points)
    for index, (arm, values) in enumerate(points.items()):
        shift = 0.78 * ((index + 0.5) / len(points) - 0.5)
        _arm_dots(axes, arm, values, [y + shift for y in positions], edge)
    for y in positions:
        axes.axhspan(y - 0.46, y + 0.46, color=COLOURS["rule"], alpha=0.3, linewidth=0, zorder=0)
    axes.set_yticks(positions, [shorten(name, 28) for name in rows])
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
    look = marker(style, 5.5)
    for (loss, sd), y in zip(values, ys, strict=True):
        if loss > edge:
            axes.plot([edge], [y], **{**look, "marker": ">"})
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
        axes.plot([loss], [y], **look)


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
        Line2D([], [], linestyle="", label=arm.replace("_dp", " DP"), **marker(style, 5.5))
        for arm, style in styles
    ]
