"""Membership inference against a model: can it be told which units it was trained on.

Two attacks, from the losses of whole privacy units: the unit's own loss (Yeom et al. 2018), and
RMIA (Zarifzadeh et al. 2024, arXiv 2312.03262), which sets it beside what reference models, the
base model among them, make of the same unit. Members' records are needed: this is for the node that
holds them, or for a simulation.

Shapes: M members, N non-members, R reference models.
"""

from collections.abc import Callable, Sequence
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

POOLED = "all together"
"""Name of the result on all institutions' units, where there are several."""

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

    Returns:
        One for each institution, and one for all of them pooled where there are several.

    Raises:
        AuditError: fewer than 2 members or non-members of an institution.

    """
    measured = []
    for suspect in suspects:
        measured.append(_measured(model, references, suspect))
        watch(suspect.name)
    if len(measured) > 1:
        measured.append(_pooled(measured))
    each = share_of_confidence(confidence, len(measured) * _INTERVALS * (2 if references else 1))
    return tuple(_audited(losses, each) for losses in measured)


def unit_nats(model: LanguageModel, units: UnitRows) -> NDArray[np.float64]:
    """Mean nats per token of every unit, over all of its sequences, as training weighs them."""
    rows = [row for unit in units.rows for row in unit]
    owner = np.repeat(np.arange(len(units)), [len(unit) for unit in units.rows])
    nats, tokens = (values.numpy() for values in row_nats(model, rows))
    total = np.bincount(owner, nats, len(units))
    mean: NDArray[np.float64] = total / np.maximum(np.bincount(owner, tokens, len(units)), 1)
    return mean


@dataclass(frozen=True)
class _Losses:
    """Mean nats per token of members and others, under the model and under every reference."""

    name: str
    member_M: NDArray[np.float64]
    other_N: NDArray[np.float64]
    member_RM: NDArray[np.float64]
    other_RN: NDArray[np.float64]


def _measured(
    model: LanguageModel, references: Sequence[LanguageModel], suspect: Suspects
) -> _Losses:
    if min(len(suspect.members), len(suspect.others)) < 2:
        raise AuditError(
            f"Expected at least 2 members and 2 non-members of {suspect.name!r}, got "
            f"{len(suspect.members)} and {len(suspect.others)}. Give more records."
        )
    both = UnitRows((*suspect.members.rows, *suspect.others.rows))
    nats_RX = np.stack([unit_nats(each, both) for each in (model, *references)])
    member, other = np.split(nats_RX, [len(suspect.members)], axis=1)
    return _Losses(suspect.name, member[0], other[0], member[1:], other[1:])


def _pooled(parts: Sequence[_Losses]) -> _Losses:
    """All institutions as one: more non-members measure lower rates."""
    return _Losses(
        POOLED,
        np.concatenate([part.member_M for part in parts]),
        np.concatenate([part.other_N for part in parts]),
        np.concatenate([part.member_RM for part in parts], axis=1),
        np.concatenate([part.other_RN for part in parts], axis=1),
    )


def _audited(losses: _Losses, confidence: float) -> MembershipAudit:
    attacks = [_result("loss", -losses.member_M, -losses.other_N, confidence)]
    if len(losses.member_RM):
        member_M = rmia_ratios(losses.member_M, losses.member_RM)
        other_N = rmia_ratios(losses.other_N, losses.other_RN)
        # The others are the population too: the score is one function of the ratio for all.
        scores = (rmia_scores(member_M, other_N), rmia_scores(other_N, other_N))
        attacks.append(_result("rmia", *scores, confidence))
    members, others = len(losses.member_M), len(losses.other_N)
    return MembershipAudit(losses.name, members, others, tuple(attacks))


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
