"""Membership inference against a model: can it be told which units it was trained on.

Two attacks, from the losses of whole privacy units: the unit's own loss (Yeom et al. 2018), and
RMIA (Zarifzadeh et al. 2024, arXiv 2312.03262), which sets it beside what reference models, the
base model among them, make of the same unit. Members' records are needed: this is for the node that
holds them, or for a simulation.

Shapes: M members, N non-members, R reference models.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arion.audit_canaries import share_of_confidence
from client.training import UnitRows
from models.evaluate import row_nats
from models.language_model import LanguageModel
from privacy.audit.membership import (
    Auc,
    TprAtFpr,
    auc,
    rmia_ratios,
    rmia_scores,
    roc,
    tpr_at_fpr,
)
from privacy.audit.one_run import AuditError

RATES = (0.001, 0.01)
_INTERVALS = 1 + 2 * len(RATES)  # of one attack: AUC, and a TPR and an FPR at every rate
_CURVE_POINTS = 200

Watch = Callable[[str], None]


@dataclass(frozen=True)
class Suspects:
    """Units that were trained on, and units that were not, of one institution."""

    name: str
    members: UnitRows
    others: UnitRows


@dataclass(frozen=True)
class AttackResult:
    """How well one attack tells members from others.

    Attributes:
        attack: "loss" or "rmia".
        tprs: one for each of `RATES`.
        curve: points (FPR, TPR) of the ROC curve, thinned out.

    """

    attack: str
    auc: Auc
    tprs: tuple[TprAtFpr, ...]
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class MembershipAudit:
    """All attacks on one institution's units."""

    name: str
    members: int
    others: int
    attacks: tuple[AttackResult, ...]


def audit_membership(
    model: LanguageModel,
    references: Sequence[LanguageModel],
    suspects: Sequence[Suspects],
    confidence: float,
    watch: Watch = lambda _name: None,
) -> tuple[MembershipAudit, ...]:
    """Attack a model with the losses of units.

    Args:
        model: what is handed out.
        references: models that saw no member; without one RMIA is left out.
        suspects: members and others, by institution.
        confidence: that all intervals of the result hold at once.
        watch: told every institution that is done.

    Raises:
        AuditError: fewer than 2 members or non-members of an institution.

    """
    tried = len(suspects) * _INTERVALS * (2 if references else 1)
    each = share_of_confidence(confidence, max(tried, 1))
    found = []
    for suspect in suspects:
        attacks = _scores(model, references, suspect)
        results = tuple(_result(name, *both, each) for name, both in attacks.items())
        members, others = len(suspect.members), len(suspect.others)
        found.append(MembershipAudit(suspect.name, members, others, results))
        watch(suspect.name)
    return tuple(found)


def unit_nats(model: LanguageModel, units: UnitRows) -> NDArray[np.float64]:
    """Mean nats per token of every unit, over all of its sequences, as training weighs them."""
    rows = [row for unit in units.rows for row in unit]
    owner = np.repeat(np.arange(len(units)), [len(unit) for unit in units.rows])
    nats, tokens = (values.numpy() for values in row_nats(model, rows))
    total = np.bincount(owner, nats, len(units))
    mean: NDArray[np.float64] = total / np.maximum(np.bincount(owner, tokens, len(units)), 1)
    return mean


def _scores(
    model: LanguageModel, references: Sequence[LanguageModel], suspect: Suspects
) -> Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Scores of members and others, by attack."""
    if min(len(suspect.members), len(suspect.others)) < 2:
        raise AuditError(
            f"Expected at least 2 members and 2 non-members of {suspect.name!r}, got "
            f"{len(suspect.members)} and {len(suspect.others)}. Give more records."
        )
    both = UnitRows((*suspect.members.rows, *suspect.others.rows))
    cut = len(suspect.members)
    nats = unit_nats(model, both)
    scores = {"loss": -nats}
    if references:
        ratio = rmia_ratios(nats, np.stack([unit_nats(each, both) for each in references]))
        # The others are the population too: the score is one function of the ratio for all.
        scores["rmia"] = rmia_scores(ratio, ratio[cut:])
    return {name: (score[:cut], score[cut:]) for name, score in scores.items()}


def _result(
    attack: str, member_M: NDArray[np.float64], other_N: NDArray[np.float64], confidence: float
) -> AttackResult:
    fpr, tpr = roc(member_M, other_N)
    kept = np.unique(np.linspace(0, len(fpr) - 1, _CURVE_POINTS).astype(int))
    return AttackResult(
        attack,
        auc(member_M, other_N, confidence),
        tuple(tpr_at_fpr(member_M, other_N, rate, confidence) for rate in RATES),
        tuple((float(fpr[at]), float(tpr[at])) for at in kept),
    )
