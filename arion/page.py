"""What a page is made of: sections of blocks, each a chart over its table, and how numbers read.

A page holds all it needs: no script, and nothing that is fetched. The templates hold its words.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from arion import charts
from privacy.figures import at_most

NONE = "—"


@dataclass(frozen=True)
class Table:
    """Rows of raw values; columns in `left` hold text, the others numbers."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Any]]
    left: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Block:
    """A chart with its table below it, folded or open, or a table alone."""

    caption: str
    table: Table
    svg: Markup | None = None
    is_open: bool = False


@dataclass(frozen=True)
class Section:
    """A heading with its blocks; `key` names its introduction in the template."""

    key: str
    title: str
    blocks: Sequence[Block]


def render_page(name: str, **values: Any) -> str:
    """Fill one of the page templates; everything but ready SVG is escaped."""
    environment = Environment(
        loader=PackageLoader("arion"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["bound"] = lambda epsilon: at_most(epsilon, 3)
    return environment.get_template(name).render(**values)


def chart_block(name: str, label: str, table: Table, draw: Callable[..., Any], *data: Any) -> Block:
    """Draw a chart over its table; `label` is its caption and what those who do not see it get."""
    # The SVG is the charts' own markup, around names that matplotlib escaped.
    return Block(label, table, Markup(charts.render(name, label, draw, *data)))  # noqa: S704


def number(value: object) -> str:
    """Write a value for people: four significant digits, thousands apart, a dash for none."""
    if value is None:
        return NONE
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {number(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(number, value))
    if isinstance(value, float):
        is_large = 10_000 <= abs(value) < 1e15
        return f"{value:,.0f}" if is_large else f"{value:.4g}".replace("e-0", "e-")
    is_count = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if is_count else str(value)
