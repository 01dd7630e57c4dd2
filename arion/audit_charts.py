"""The charts of an audit: plain numbers in, a figure out; `arion.charts.render` makes SVG of it."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from arion.charts import COLOURS, SERIES, figure_of
from privacy.figures import at_least, at_most

_LEAST_RATE = 1e-3


def bounds(claim: float, found: Mapping[str, tuple[float, float]]) -> Figure:
    """The claimed epsilon as a line, and for each attack what it shows and what it could show.

    Args:
        claim: epsilon. found: (lower bound, most that could have been shown) by attack.

    """
    figure = figure_of(1.1 + 0.42 * len(found))
    axes = figure.subplots()
    for row, (shown, most) in enumerate(found.values()):
        axes.barh(row, most, 0.62, color=COLOURS["rule"], linewidth=0)
        colour = COLOURS["red" if shown > claim else "blue"]
        axes.barh(row, shown, 0.62, color=colour, linewidth=0)
        axes.annotate(
            f"≥ {at_least(shown, 2)}", (shown, row), (4, 0), textcoords="offset points", va="center"
        )
    axes.axvline(claim, color=COLOURS["ink"], linewidth=1.6)
    axes.set_title(f"claimed: ε = {at_most(claim, 2)}  (line)", color=COLOURS["ink"])
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel("ε (grey: the most that so many canaries could show)")
    axes.set_xlim(0, 1.08 * max([claim, *(most for _, most in found.values())]))
    axes.tick_params(length=0)
    return figure


def rocs(curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> Figure:
    """ROC curves on logarithmic axes, a panel per attack and a line per institution.

    Args:
        curves: points (FPR, TPR) by attack, then institution.

    """
    figure = figure_of(3.4)
    grid = figure.subplots(1, len(curves), sharey=True, squeeze=False)
    for axes, (attack, lines) in zip(grid.flat, curves.items(), strict=True):
        _roc_panel(axes, attack, lines)
    grid[0, 0].set_ylabel("members found (TPR)")
    if 1 < len(next(iter(curves.values()))) <= len(SERIES):
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure


def _roc_panel(axes: Axes, attack: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    axes.plot([_LEAST_RATE, 1], [_LEAST_RATE, 1], ":", color=COLOURS["muted"], linewidth=1.2)
    for index, (name, points) in enumerate(lines.items()):
        colour = COLOURS[SERIES[index % len(SERIES)]]
        kept = [(max(fpr, _LEAST_RATE), max(tpr, _LEAST_RATE)) for fpr, tpr in points]
        axes.plot(*zip(*kept, strict=True), color=colour, linewidth=1.5, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(_LEAST_RATE, 1)
    axes.set_ylim(_LEAST_RATE, 1.1)
    axes.set_title(attack)
    axes.set_xlabel("others accused (FPR); dotted: guessing")
    axes.grid()
