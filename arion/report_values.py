"""What report.json says, read for people: who took part, which arms there are, what they reached.

Only `kind`, `arms`, `rounds` and `seconds` are always there; what is missing reads as nothing.
"""

import math
from collections.abc import Mapping
from typing import Any

from arion.page import NONE

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


def member_names(report: Report) -> list[str]:
    """Institutions that trained, as the report lists them or as the attempts name them."""
    listed = [row["name"] for row in report.get("institutions", ()) if not row.get("unseen")]
    named = {
        name for at in report.get("attempts", ()) for name in (*at["survivors"], *at["refusals"])
    }
    return [*listed, *sorted(named - set(listed))]


def unseen_names(report: Report) -> list[str]:
    """Institutions that only tested the model."""
    return [row["name"] for row in report.get("institutions", ()) if row.get("unseen")]


def state_of(name: str, attempt: Report) -> str:
    """What an attempt was for one institution: a key of `run_charts.PRESENCE_STYLES`."""
    if name in attempt["refusals"]:
        return "refused"
    if attempt["code"]:
        return "attempt aborted"
    if name in attempt.get("spoilt", ()):
        return "in a spoilt group"
    return "in the sum" if name in attempt["survivors"] else "dropped out"


def refusals_of(attempt: Report) -> str:
    """Who refused in an attempt, with code and reason."""
    return "; ".join(
        f"{name}: {code} ({detail})" for name, (code, detail) in attempt["refusals"].items()
    )


def arms_of(report: Report) -> dict[str, Report]:
    """The arms in the order of `ARMS`, unknown ones last."""
    names = [*ARMS, *(arm for arm in report["arms"] if arm not in ARMS)]
    return {arm: report["arms"][arm] for arm in names if arm in report["arms"]}


def arm_label(arm: str) -> str:
    """An arm as headings write it."""
    return f"{arm.removesuffix('_dp')} DP" if arm.endswith("_dp") else arm


def loss_columns(report: Report) -> list[str]:
    """The means, then the institutions that trained, then the unseen ones."""
    present = {key for arm in report["arms"].values() for key in arm.get("heldout_loss", {})}
    listed = [row["name"] for row in report.get("institutions", ())]
    unseen = unseen_names(report)
    seen = [name for name in listed if name not in unseen]
    others = sorted(present - {"mean", "unseen", *listed})
    return [key for key in ("mean", "unseen", *seen, *others, *unseen) if key in present]


def row_label(column: str) -> str:
    """A loss column as rows write it."""
    return {"mean": "mean, trained", "unseen": "mean, unseen"}.get(column, column)


def loss_text(arm: Report, column: str) -> str:
    """A held-out loss with its sd over seeds, or a dash."""
    loss = arm.get("heldout_loss", {}).get(column)
    sd = arm.get("heldout_loss_sd", {}).get(column)
    if loss is None:
        return NONE
    return f"{loss:.3f}" + ("" if sd is None else f" ± {sd:.3f}")


def arm_points(report: Report) -> tuple[list[str], int, dict[str, list[tuple[float, float]]]]:
    """Arguments of `arm_charts.arms`: the unseen mean goes down to the unseen institutions."""
    unseen = {"unseen", *unseen_names(report)}
    columns = loss_columns(report)
    ordered = sorted(columns, key=lambda column: column in unseen)
    points = {
        arm: [
            (
                result.get("heldout_loss", {}).get(column, math.nan),
                result.get("heldout_loss_sd", {}).get(column, 0.0),
            )
            for column in ordered
        ]
        for arm, result in arms_of(report).items()
    }
    first = sum(column not in unseen for column in columns)
    return [row_label(column) for column in ordered], first, points
