"""An audit as data and as one page: what is claimed beside what was shown.

The dict is what `--json` prints and `--out` writes; the page is made of it alone. No secret, no
record, no unit and no score of one is in either.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arion import audit_charts
from arion.audit_canaries import ATTACKS, CanaryAudit
from arion.audit_membership import AttackResult, MembershipAudit
from arion.audit_secrets import SecretFinding
from arion.audit_target import Audit
from arion.page import Block, Section, Table, chart_block, render_page
from arion.summary import stamp
from privacy.audit.exposure import expected_when_unseen
from privacy.figures import at_least, at_most
from privacy.ledger.files import replace_durably

Report = Mapping[str, Any]

REFUTED, NOT_REFUTED, NO_CLAIM = "REFUTED", "not refuted", "nothing claimed"


def audit_json(audit: Audit) -> dict[str, Any]:
    """An audit as plain data."""
    verdict = NO_CLAIM if audit.claim is None else NOT_REFUTED
    return {
        "kind": "audit",
        "title": f"Audit of {audit.target}",
        **stamp(),
        "verdict": REFUTED if audit.is_refuted else verdict,
        "refuted": audit.is_refuted,
        "noise": audit.noise,
        "claim": None if audit.claim is None else asdict(audit.claim),
        "bound": None if audit.canaries is None else audit.canaries.bound,
        "confidence": audit.wanted.confidence,
        "seed": audit.wanted.seed,
        "canaries": [] if audit.canaries is None else _canaries(audit.canaries),
        "membership": [_membership(each) for each in audit.membership],
        "secrets": [_secret(each) for each in audit.secrets],
    }


def write_page(report: Report, path: Path) -> None:
    """Write the page of an audit: one HTML file that loads nothing, whole or not at all."""
    sections = [
        Section("canaries", "The claim, attacked with canaries", list(_canary_blocks(report))),
        Section("membership", "Membership inference", list(_membership_blocks(report))),
        Section("secrets", "Exposure of planted secrets", list(_secret_blocks(report))),
    ]
    shown = [section for section in sections if section.blocks]
    found = report["secrets"]
    # The mean of the largest of k exponential variables with mean 1 / ln 2.
    highest = sum(1 / at for at in range(1, len(found) + 1)) / math.log(2)
    claim, bound = report["claim"], report["bound"]
    page = render_page(
        "audit.html.j2",
        report=report,
        sections=shown,
        highest=highest,
        claimed=None if claim is None else at_most(claim["epsilon"], 3),
        bound=None if bound is None else at_least(bound, 3),
    )
    replace_durably(path, page.encode())


def _canaries(audit: CanaryAudit) -> list[dict[str, Any]]:
    return [
        {
            "attack": bound.attack,
            "what": ATTACKS[bound.attack],
            "epsilon_at_least": bound.epsilon,
            "most_it_can_show": bound.most,
            **asdict(bound.guesses),
        }
        for bound in audit.bounds
    ]


def _membership(audit: MembershipAudit) -> dict[str, Any]:
    return {
        "name": audit.name,
        "members": audit.members,
        "non_members": audit.others,
        "attacks": [_attack(result) for result in audit.attacks],
    }


def _attack(result: AttackResult) -> dict[str, Any]:
    return {
        "attack": result.attack,
        "auc": asdict(result.auc),
        "tpr_at_fpr": [
            {
                "fpr": at.rate,
                "tpr": at.tpr.value,
                "tpr_low": at.tpr.low,
                "tpr_high": at.tpr.high,
                "fpr_observed": at.fpr.value,
                "fpr_high": at.fpr.high,
                "measurable": at.is_measurable,
                "non_members_needed": at.needed,
            }
            for at in result.tprs
        ],
        "roc": [list(point) for point in result.curve],
    }


def _secret(finding: SecretFinding) -> dict[str, Any]:
    exposure = finding.exposure
    return {
        "institution": finding.institution,
        "was_trained_on": finding.was_trained_on,
        **asdict(exposure),
        "p_value": exposure.p_value,
        "expected_when_unseen": expected_when_unseen(exposure.tried),
    }


def _canary_blocks(report: Report) -> Iterator[Block]:
    found = report["canaries"]
    if not found:
        return
    rows = [
        [
            each["attack"],
            each["what"],
            at_least(each["epsilon_at_least"], 3),
            at_least(each["most_it_can_show"], 3),
            each["canaries"],
            f"{each['correct']} of {each['guessed']}",
        ]
        for each in found
    ]
    headings = ["attack", "what it sees", "ε at least", "most it can show", "canaries", "right"]
    values = {
        each["attack"]: (each["epsilon_at_least"], each["most_it_can_show"]) for each in found
    }
    label = "Claimed epsilon beside the lower bound of each attack."
    yield chart_block(
        "bounds",
        label,
        Table(headings, rows, frozenset({0, 1})),
        audit_charts.bounds,
        report["claim"]["epsilon"],
        values,
    )


def _membership_blocks(report: Report) -> Iterator[Block]:
    if not report["membership"]:
        return
    curves: dict[str, dict[str, list[list[float]]]] = {}
    rows = []
    for each in report["membership"]:
        for attack in each["attacks"]:
            curves.setdefault(attack["attack"], {})[each["name"]] = attack["roc"]
            rows.append([each["name"], attack["attack"], *_row(each, attack)])
    headings = ["institution", "attack", "members", "others", "AUC", "TPR at 0.1% FPR"]
    table = Table([*headings, "TPR at 1% FPR"], rows, frozenset({0, 1}))
    label = "Units found against units wrongly accused, on logarithmic axes."
    yield chart_block("rocs", label, table, audit_charts.rocs, curves)


def _row(audit: Report, attack: Report) -> list[Any]:
    auc = attack["auc"]
    return [
        audit["members"],
        audit["non_members"],
        f"{auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})",
        *(tpr_words(at) for at in attack["tpr_at_fpr"]),
    ]


def tpr_words(at: Report) -> str:
    """A TPR with its interval, or why there is none."""
    if not at["measurable"]:
        return f"not measurable: needs {at['non_members_needed']:,} others"
    return f"{at['tpr']:.2%} ({at['tpr_low']:.2%} to {at['tpr_high']:.2%})"


def _secret_blocks(report: Report) -> Iterator[Block]:
    if not report["secrets"]:
        return
    trained = {True: "yes", False: "no, or in part", None: "not known"}
    rows = [
        [
            number,
            each["institution"],
            trained[each["was_trained_on"]],
            f"{each['bits']:.2f}",
            f"{each['limit']:.2f}",
            None if each["extrapolated"] is None else f"{each['extrapolated']:.1f}",
            f"{each['p_value']:.3g}",
        ]
        for number, each in enumerate(report["secrets"], start=1)
    ]
    headings = ["secret", "institution", "trained on", "exposure (bits)", "at most"]
    table = Table([*headings, "extrapolated", "chance if unseen"], rows, frozenset({1, 2}))
    yield Block("Exposure of each secret, which itself is not shown.", table)
