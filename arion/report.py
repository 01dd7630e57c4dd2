"""A run's report as one page: what ran, at which epsilon, what it reached, who took part.

The input is the dict that is also written as report.json. Only `kind`, `arms`, `rounds` and
`seconds` are always there; a section whose numbers are missing is left out.
"""

from pathlib import Path

from arion import arm_charts, charts
from arion.page import render_page
from arion.report_sections import ARMS_LABEL, sections_of
from arion.report_values import (
    Report,
    arm_label,
    arm_points,
    arms_of,
    loss_columns,
    loss_text,
    member_names,
    unseen_names,
)
from privacy.ledger.files import replace_durably


def write_report(report: Report, path: Path) -> None:
    """Write the page of a run or a comparison: one HTML file, whole or not at all.

    Args:
        report: content of report.json; its names are untrusted and escaped.
        path: the file to write; its folder exists.

    """
    page = render_page(
        "report.html.j2",
        report=report,
        sections=[section for section in sections_of(report) if section.blocks],
        labels=[arm_label(arm) for arm in arms_of(report)],
        epsilons=[value for value in report.get("epsilon", {}).values() if value is not None],
        unbounded=[name for name, value in report.get("epsilon", {}).items() if value is None],
        unseen=unseen_names(report),
        units=sorted({str(row["unit"]) for row in report.get("institutions", ())}),
        seen=member_names(report),
    )
    replace_durably(path, page.encode())


def write_chart(report: Report, path: Path) -> None:
    """Write the arms' chart of a comparison as an SVG file of its own.

    Raises:
        ValueError: the report is not a comparison.

    """
    if report["kind"] != "comparison":
        raise ValueError(f"Expected the report of a comparison, got a {report['kind']}.")
    svg = charts.render("arms", ARMS_LABEL, arm_charts.arms, *arm_points(report), page=False)
    replace_durably(path, svg.encode())


def comparison_table(report: Report) -> str:
    """Held-out loss by arm and institution, mean ± sd over seeds, as a Markdown table."""
    columns = loss_columns(report)
    heading = ["arm", *(column.replace("|", "\\|") for column in columns)]
    lines = [heading, ["---", *["---:"] * len(columns)]]
    for arm, result in arms_of(report).items():
        lines.append([arm.replace("|", "\\|"), *(loss_text(result, column) for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
