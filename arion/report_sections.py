"""The sections of a run's page: each is left out where the report has no numbers for it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from arion import arm_charts, run_charts
from arion.page import NONE, Block, Section, Table, chart_block
from arion.report_values import (
    ARMS,
    Report,
    arm_label,
    arm_points,
    arms_of,
    loss_columns,
    loss_text,
    member_names,
    refusals_of,
    row_label,
    state_of,
    unseen_names,
)
from privacy.figures import at_most

ARMS_LABEL = "Held-out loss in nats per token by institution and arm, unseen institutions last."
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


def sections_of(report: Report) -> Iterator[Section]:
    """All sections in the page's order, empty ones too; a comparison begins with its arms."""
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
    arms, columns = arms_of(report), loss_columns(report)
    if not columns:
        return
    losses = Table(
        ["", *map(arm_label, arms)],
        [
            [row_label(column), *(loss_text(arm, column) for arm in arms.values())]
            for column in columns
        ],
    )
    caption = "Held-out loss in nats per token; lower is better."
    if any(arm.get("heldout_loss_sd") for arm in arms.values()):
        caption = "Held-out loss in nats per token, mean ± one sd over seeds; lower is better."
    block = Block(caption, losses)
    if report["kind"] == "comparison":
        chart = chart_block("arms", ARMS_LABEL, losses, arm_charts.arms, *arm_points(report))
        block = replace(chart, caption=caption, is_open=True)
    yield block
    rows = [
        [
            arm_label(arm),
            ARMS.get(arm, ""),
            *map(result.get, ("learning_rate", "seeds", "seconds")),
        ]
        for arm, result in arms.items()
    ]
    headings = ["arm", "what it is", "learning rate", "seeds", "time (s)"]
    yield Block("The arms.", Table(headings, rows, frozenset({0, 1})))


def _loss_rounds(report: Report) -> Iterator[Block]:
    mean = report.get("loss_per_round", [])
    unseen = unseen_names(report)
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
    yield chart_block("losses", label, table, run_charts.losses, by_institution, mean)


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
        yield chart_block("epsilons", label, table, run_charts.epsilons, spent, budget)
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
    members = member_names(report)
    if not attempts or not members:
        return
    names = [
        f"{at['round']}" if at["attempt"] == 1 else f"{at['round']}.{at['attempt']}"
        for at in attempts
    ]
    grid = {name: [state_of(name, at) for at in attempts] for name in members}
    rows = [
        [name, len(at["survivors"]), at["code"], refusals_of(at), at.get("near_edge")]
        for name, at in zip(names, attempts, strict=True)
    ]
    headings = ["attempt", "in the sum", "aborted for", "refusals", "values near the ring's edge"]
    label = "For each institution and attempt: in the sum, dropped out, refused, or aborted."
    table = Table(headings, rows, frozenset({0, 2, 3}))
    yield chart_block("presence", label, table, run_charts.presence, names, grid)


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
            "phases", "Seconds of each phase of the run.", table, run_charts.phases, named
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
        yield chart_block("routing", label, table, run_charts.routing, shares)


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
    return chart_block(name, label, table, run_charts.stacked_rounds, rounds, bars, unit)
