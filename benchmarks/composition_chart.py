"""The composition study as a chart: held-out loss above pooled training, by domain and arm."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from arion.charts import COLOURS, WIDTH, render

# Arm: colour, marker, filled.
STYLES: Mapping[str, tuple[str, str, bool]] = {
    "public only": ("muted", "D", True),
    "weights averaged": ("red", "s", False),
    "outputs averaged": ("red", "s", True),
    "full training, weights averaged": ("purple", "v", False),
    "full training, outputs averaged": ("purple", "v", True),
    "composed": ("blue", "o", True),
    "router tuned on generated text": ("blue", "o", False),
    "pooled training": ("green", "^", True),
}


def svg(losses: Mapping[str, Mapping[str, float]], domains: Sequence[str]) -> str:
    """Draw the arms and the opt-outs; equal input gives equal bytes."""
    label = "Held-out loss of each way to combine four owners' experts, and what opting out costs"
    return render("composition", label, _draw, losses, domains, page=False)


def _draw(losses: Mapping[str, Mapping[str, float]], domains: Sequence[str]) -> Figure:
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = ["mean", *domains]
    for index, (arm, (colour, marker, filled)) in enumerate(STYLES.items()):
        found = losses[arm]
        values = [sum(found.values()) / len(found), *(found[domain] for domain in domains)]
        shift = 0.7 * ((index + 0.5) / len(STYLES) - 0.5)
        left.plot(
            values,
            [row + shift for row in range(len(rows))],
            linestyle="",
            marker=marker,
            markersize=5.5,
            color=COLOURS[colour],
            markerfacecolor=COLOURS[colour if filled else "surface"],
            label=arm,
        )
    for row in range(len(rows)):
        left.axhspan(
            row - 0.44, row + 0.44, color=COLOURS["rule"], alpha=0.3, linewidth=0, zorder=0
        )
    left.set_yticks(range(len(rows)), rows)
    left.set_ylim(len(rows) - 0.4, -0.6)
    left.set_xlabel("held-out loss (nats per token): left is better")
    left.grid(axis="x")
    _draw_opt_outs(right, losses, domains)
    figure.legend(loc="outside upper left", ncols=4, handletextpad=0.2)
    return figure


def _draw_opt_outs(
    axes: Axes, losses: Mapping[str, Mapping[str, float]], domains: Sequence[str]
) -> None:
    owners = domains[1:]
    rise = [
        [losses[f"composed without {owner}"][d] - losses["composed"][d] for d in domains]
        for owner in owners
    ]
    largest = max(max(row) for row in rise)
    for row, values in enumerate(rise):
        for column, value in enumerate(values):
            depth = max(value, 0.0) / largest
            axes.fill_between(
                [column - 0.48, column + 0.48], row - 0.46, row + 0.46,
                color=COLOURS["blue"], alpha=0.75 * depth, linewidth=0,
            )  # fmt: skip
            axes.text(column, row, f"{value:+.2f}", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(domains)), domains)
    axes.set_yticks(range(len(owners)), [f"without {owner}" for owner in owners])
    axes.set_ylim(len(owners) - 0.5, -0.5)
    axes.set_xlim(-0.5, len(domains) - 0.5)
    axes.set_title("what opting out adds to the loss")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
