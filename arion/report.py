"""A run's report as one page: what ran, at which epsilon, what it reached, who took part.

The input is the dict that is also written as report.json. Only `kind`, `arms`, `rounds` and
`seconds` are always there; a section whose numbers are missing is left out. The page holds all it
needs: no script, and nothing that is fetched. The templates hold its words.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from arion import charts
from privacy.figures import at_most
from privacy.ledger.files import replace_durably

Report = Mapping[str, Any]

ARMS = {
    "base": "the starting model, trained on no institution's text",
    "local": "each institution alone, no noise",
    "local_dp": "each institution alone, differentially private",
    "federated": "all together, only sums shared, no noise",
    "federated_dp": "all together, only sums shared, differentially private",
    "central": "all texts in one place, no noise",
    "central_dp": "all texts in one place, differentially private",
}
MECHANISM = {
    "noise_multiplier": "noise multiplier z",
    "clipping_norm": "clipping norm C",
    "clipping": "clipping rule",
    "sampling_probability": "sampling probability q",
    "expected_batch": "expected batch B (units)",
    "releases": "releases T (rounds charged)",
    "honest_survivors": "honest survivors h",
    "n_min": "fewest members in a sum n_min",
    "colluders": "colluders tolerated c",
    "noise_in_lattice_units": "one node's noise s (lattice units)",
    "ring_bits": "ring width w (bits)",
}
MODEL = {"parameters": "parameters", "trainable": "trained parameters"}
STEPS = ("upload", "survivors", "unmask", "open", "ledger")
MEGABYTE = 1e6
NONE = "—"
_ARMS_LABEL = "Held-out loss in nats per token by institution and arm, unseen institutions last."


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


def write_report(report: Report, path: Path) -> None:
    """Write the page of a run or a comparison: one HTML file, whole or not at all.

    Args:
        report: content of report.json; its names are untrusted and escaped.
        path: the file to write; its folder exists.

    """
    page = render_page(
        "report.html.j2",
        report=report,
        sections=[section for section in _sections(report) if section.blocks],
        labels=[_arm_label(arm) for arm in _arms(report)],
        epsilons=[value for value in report.get("epsilon", {}).values() if value is not None],
        unbounded=[name for name, value in report.get("epsilon", {}).items() if value is None],
        unseen=_unseen(report),
        units=sorted({str(row["unit"]) for row in report.get("institutions", ())}),
        seen=_members(report),
    )
    replace_durably(path, page.encode())


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


def write_chart(report: Report, path: Path) -> None:
    """Write the arms' chart of a comparison as an SVG file of its own.

    Raises:
        ValueError: the report is not a comparison.

    """
    if report["kind"] != "comparison":
        raise ValueError(f"Expected the report of a comparison, got a {report['kind']}.")
    svg = charts.render("arms", _ARMS_LABEL, charts.arms, *_arm_points(report), page=False)
    replace_durably(path, svg.encode())


def comparison_table(report: Report) -> str:
    """Held-out loss by arm and institution, mean ± sd over seeds, as a Markdown table."""
    columns = _loss_columns(report)
    heading = ["arm", *(column.replace("|", "\\|") for column in columns)]
    lines = [heading, ["---", *["---:"] * len(columns)]]
    for arm, result in _arms(report).items():
        lines.append([arm.replace("|", "\\|"), *(_loss(result, column) for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


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


def _sections(report: Report) -> Iterator[Section]:
    results = Section("results", "Held-out loss by arm", list(_results(report)))
    rounds = Section("loss", "Held-out loss over the rounds", list(_loss_rounds(report)))
    yield from (results, rounds) if report["kind"] == "comparison" else (rounds, results)
    yield Section("privacy", "Privacy budget", list(_privacy(report)))
    yield Section("presence", "Who took part", list(_presence(report)))
    yield Section("traffic", "Traffic", list(_traffic(report)))
    yield Section("time", "Where the time went", list(_time(report)))
    yield Section("routing", "Which experts read which text", list(_routing(report)))
    yield Section("institutions", "Institutions", list(_institutions(report)))
    yield Section(
        "mechanism", "Mechanism", list(_pairs(report.get("mechanism", {}), MECHANISM, "quantity"))
    )
    yield Section("model", "Model", list(_pairs(report.get("model", {}), MODEL, "property")))
    yield Section("ledger", "Check it yourself", list(_ledger(report)))


def _results(report: Report) -> Iterator[Block]:
    arms, columns = _arms(report), _loss_columns(report)
    if not columns:
        return
    losses = Table(
        ["", *map(_arm_label, arms)],
        [
            [_row_label(column), *(_loss(arm, column) for arm in arms.values())]
            for column in columns
        ],
    )
    caption = "Held-out loss in nats per token; lower is better."
    if any(arm.get("heldout_loss_sd") for arm in arms.values()):
        caption = "Held-out loss in nats per token, mean ± one sd over seeds; lower is better."
    block = Block(caption, losses)
    if report["kind"] == "comparison":
        chart = chart_block("arms", _ARMS_LABEL, losses, charts.arms, *_arm_points(report))
        block = replace(chart, caption=caption, is_open=True)
    yield block
    rows = [
        [
            _arm_label(arm),
            ARMS.get(arm, ""),
            *map(result.get, ("learning_rate", "seeds", "seconds")),
        ]
        for arm, result in arms.items()
    ]
    headings = ["arm", "what it is", "learning rate", "seeds", "time (s)"]
    yield Block("The arms.", Table(headings, rows, frozenset({0, 1})))


def _loss_rounds(report: Report) -> Iterator[Block]:
    mean = report.get("loss_per_round", [])
    unseen = _unseen(report)
    by_institution = {
        name + (" (unseen)" if name in unseen else ""): losses
        for name, losses in report.get("loss_by_institution_per_round", {}).items()
        if losses
    }
    if not mean and not by_institution:
        return
    columns = {"mean": [None, *mean]} if mean else {}
    columns |= by_institution
    rows = [
        [at, *(NONE if loss is None else f"{loss:.3f}" for loss in losses)]
        for at, losses in enumerate(zip_longest(*columns.values()))
    ]
    table = Table(["round", *columns], rows)
    label = "Held-out loss in nats per token after each round, a panel per institution."
    yield chart_block("losses", label, table, charts.losses, by_institution, mean)


def _privacy(report: Report) -> Iterator[Block]:
    spent = report.get("epsilon_per_round", [])
    epsilon = report.get("epsilon", {})
    charged = [value for value in epsilon.values() if value is not None]
    if spent:
        table = Table(
            ["round", "ε released so far"],
            [[at, at_most(value, 3)] for at, value in enumerate(spent, start=1)],
        )
        label = "ε of the releases so far after each round, and the ε that the ledgers charged."
        budget = max(charged, default=None)
        yield chart_block("epsilons", label, table, charts.epsilons, spent, budget)
    if epsilon:
        delta = report.get("delta")
        rows = [
            [name, None if value is None else at_most(value, 3), delta]
            for name, value in epsilon.items()
        ]
        yield Block(
            "What each institution's ledger charged.", Table(["institution", "ε", "δ"], rows)
        )


def _presence(report: Report) -> Iterator[Block]:
    attempts = report.get("attempts", [])
    members = _members(report)
    if not attempts or not members:
        return
    names = [
        f"{at['round']}" if at["attempt"] == 1 else f"{at['round']}.{at['attempt']}"
        for at in attempts
    ]
    grid = {name: [_state(name, at) for at in attempts] for name in members}
    rows = [
        [name, len(at["survivors"]), at["code"], _refusals(at), at.get("near_edge")]
        for name, at in zip(names, attempts, strict=True)
    ]
    headings = ["attempt", "in the sum", "aborted for", "refusals", "values near the ring's edge"]
    label = "For each institution and attempt: in the sum, dropped out, refused, or aborted."
    table = Table(headings, rows, frozenset({0, 2, 3}))
    yield chart_block("presence", label, table, charts.presence, names, grid)


def _traffic(report: Report) -> Iterator[Block]:
    attempts = report.get("attempts", [])
    if attempts:
        series = {
            f"{verb} institutions": [at[key] / MEGABYTE for at in attempts]
            for verb, key in (("sent to", "sent_bytes"), ("received from", "received_bytes"))
        }
        label = "Traffic of the coordinator in megabytes per round; repeated attempts included."
        yield _stacked("traffic", label, attempts, series, "traffic (MB)")


def _time(report: Report) -> Iterator[Block]:
    attempts, phases = report.get("attempts", []), report.get("phases_s", {})
    if attempts:
        others = sorted({step for at in attempts for step in at["seconds"]} - set(STEPS))
        series = {
            step: [at["seconds"].get(step, 0.0) for at in attempts] for step in (*STEPS, *others)
        }
        label = "Seconds per round by step of the protocol; repeated attempts included."
        yield _stacked("steps", label, attempts, series, "time (s)")
    if phases:
        named = {phase.replace("_", " "): seconds for phase, seconds in phases.items()}
        table = Table(["phase", "time (s)"], list(named.items()))
        yield chart_block(
            "phases", "Seconds of each phase of the run.", table, charts.phases, named
        )


def _routing(report: Report) -> Iterator[Block]:
    shares = {name: layers for name, layers in report.get("routing", {}).items() if layers}
    if shares:
        widest = max(len(row) for layers in shares.values() for row in layers)
        rows = [
            [name, layer, *(f"{share:.1%}" for share in row), *[None] * (widest - len(row))]
            for name, layers in shares.items()
            for layer, row in enumerate(layers)
        ]
        table = Table(["institution", "layer", *(f"expert {at}" for at in range(widest))], rows)
        label = "Share of each institution's tokens that each expert receives, by layer."
        yield chart_block("routing", label, table, charts.routing, shares)


def _institutions(report: Report) -> Iterator[Block]:
    keys = ("name", "label", "records", "units", "unit", "heldout_records")
    rows = [
        [*map(row.get, keys), "unseen" if row.get("unseen") else "trained"]
        for row in report.get("institutions", ())
    ]
    headings = ["name", "what it is", "records", "units", "unit", "held-out records", "role"]
    if rows:
        yield Block("", Table(headings, rows, frozenset({0, 1, 4, 6})))


def _ledger(report: Report) -> Iterator[Block]:
    ledger = report.get("ledger", {})
    if ledger:
        rows = list(ledger.get("fingerprints", {}).items())
        table = Table(["ledger", "fingerprint of its key"], rows, frozenset({0, 1}))
        yield Block("Fingerprints to compare with the owners of the keys.", table)


def _pairs(values: Mapping[str, Any], labels: Mapping[str, str], heading: str) -> Iterator[Block]:
    if values:
        rows = [
            [labels.get(key, key.replace("_", " ")), f"{at:.8g}" if isinstance(at, float) else at]
            for key, at in values.items()
        ]
        yield Block("", Table([heading, "value"], rows, frozenset({0, 1})))


def chart_block(name: str, label: str, table: Table, draw: Callable[..., Any], *data: Any) -> Block:
    """Draw a chart over its table; `label` is its caption and what those who do not see it get."""
    # The SVG is the charts' own markup, around names that matplotlib escaped.
    return Block(label, table, Markup(charts.render(name, label, draw, *data)))  # noqa: S704


def _stacked(
    name: str, label: str, attempts: Sequence[Report], series: Mapping[str, list[float]], unit: str
) -> Block:
    """Draw values per attempt as bars per round."""
    rounds = sorted({at["round"] for at in attempts})
    sums = {title: dict.fromkeys(rounds, 0.0) for title in series}
    for title, values in series.items():
        for at, value in zip(attempts, values, strict=True):
            sums[title][at["round"]] += value
    bars = {title: list(by_round.values()) for title, by_round in sums.items()}
    table = Table(
        ["round", *bars],
        [[at, *(f"{bar[index]:.2f}" for bar in bars.values())] for index, at in enumerate(rounds)],
    )
    return chart_block(name, label, table, charts.stacked_rounds, rounds, bars, unit)


def _state(name: str, attempt: Report) -> str:
    """What an attempt was for one institution: a key of `charts.PRESENCE_STYLES`."""
    if name in attempt["refusals"]:
        return "refused"
    if attempt["code"]:
        return "attempt aborted"
    if name in attempt.get("spoilt", ()):
        return "in a spoilt group"
    return "in the sum" if name in attempt["survivors"] else "dropped out"


def _refusals(attempt: Report) -> str:
    return "; ".join(
        f"{name}: {code} ({detail})" for name, (code, detail) in attempt["refusals"].items()
    )


def _members(report: Report) -> list[str]:
    """Institutions that trained, as the report lists them or as the attempts name them."""
    listed = [row["name"] for row in report.get("institutions", ()) if not row.get("unseen")]
    named = {
        name for at in report.get("attempts", ()) for name in (*at["survivors"], *at["refusals"])
    }
    return [*listed, *sorted(named - set(listed))]


def _unseen(report: Report) -> list[str]:
    return [row["name"] for row in report.get("institutions", ()) if row.get("unseen")]


def _arms(report: Report) -> dict[str, Report]:
    """The arms in the order of `ARMS`, unknown ones last."""
    names = [*ARMS, *(arm for arm in report["arms"] if arm not in ARMS)]
    return {arm: report["arms"][arm] for arm in names if arm in report["arms"]}


def _arm_label(arm: str) -> str:
    return f"{arm.removesuffix('_dp')} DP" if arm.endswith("_dp") else arm


def _loss_columns(report: Report) -> list[str]:
    """The means, then the institutions that trained, then the unseen ones."""
    present = {key for arm in report["arms"].values() for key in arm.get("heldout_loss", {})}
    listed = [row["name"] for row in report.get("institutions", ())]
    unseen = _unseen(report)
    seen = [name for name in listed if name not in unseen]
    others = sorted(present - {"mean", "unseen", *listed})
    return [key for key in ("mean", "unseen", *seen, *others, *unseen) if key in present]


def _row_label(column: str) -> str:
    return {"mean": "mean, trained", "unseen": "mean, unseen"}.get(column, column)


def _loss(arm: Report, column: str) -> str:
    loss = arm.get("heldout_loss", {}).get(column)
    sd = arm.get("heldout_loss_sd", {}).get(column)
    if loss is None:
        return NONE
    return f"{loss:.3f}" + ("" if sd is None else f" ± {sd:.3f}")


def _arm_points(report: Report) -> tuple[list[str], int, dict[str, list[tuple[float, float]]]]:
    """Arguments of `charts.arms`: the unseen mean goes down to the unseen institutions."""
    unseen = {"unseen", *_unseen(report)}
    columns = _loss_columns(report)
    ordered = sorted(columns, key=lambda column: column in unseen)
    points = {
        arm: [
            (
                result.get("heldout_loss", {}).get(column, math.nan),
                result.get("heldout_loss_sd", {}).get(column, 0.0),
            )
            for column in ordered
        ]
        for arm, result in _arms(report).items()
    }
    first = sum(column not in unseen for column in columns)
    return [_row_label(column) for column in ordered], first, points
