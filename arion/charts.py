"""How charts look, and how they become SVG: what every page's and every file's charts share.

Every colour is one of `COLOURS`. In a page a colour becomes the CSS variable of its name, so that
one drawing serves light and dark; on its own an SVG keeps the light values. No chart tells things
apart by colour alone: shape, position or a label always says the same.
"""

import io
import re
from collections.abc import Callable
from typing import Any

from markupsafe import escape
from matplotlib import rc_context
from matplotlib.figure import Figure

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
SERIES = ("blue", "sky", "green", "yellow", "red", "purple", "muted")
WIDTH = 9.6
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
        draw: a chart function.
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


def marker(style: tuple[str, str, bool], size: float) -> dict[str, Any]:
    """A plot's options for a marker. Args: style: colour, marker, whether filled. size: points."""
    colour, marker, filled = style
    return {
        "marker": marker,
        "markersize": size,
        "color": COLOURS[colour],
        "markerfacecolor": COLOURS[colour if filled else "surface"],
        "markeredgecolor": COLOURS[colour],
    }


def figure_of(height: float) -> Figure:
    """An empty figure as wide as a page; `height` in inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def shorten(name: str, length: int) -> str:
    """Leave out the middle of a name that is longer than `length` characters."""
    if len(name) <= length:
        return name
    head = length // 2
    return f"{name[:head]}…{name[head + 1 - length :]}"  # names often differ in their end
