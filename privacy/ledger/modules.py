"""Released modules of owned experts, held against their owner's ledger."""

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path

from privacy.ledger.budget import ModuleSpend
from privacy.ledger.spends import format_micro

SEALED_FOLDER = "sealed"
"""Folder of a job in a node's home: its module lacks its debit until the job is done."""

_WEIGHTS = re.compile(r"[0-9a-f]{64}\.safetensors")


def find_modules(root_dir: Path) -> list[Path]:
    """Weights of the modules below a folder, `OWNER/DIGEST.safetensors`."""
    return sorted(p for p in root_dir.rglob("*.safetensors") if _WEIGHTS.fullmatch(p.name))


def module_faults(
    owner: str,
    modules: Sequence[Path],
    debited: Mapping[str, ModuleSpend],
    unfinished: Container[str],
) -> Iterator[str]:
    """Tell what is wrong with an owner's modules, given what its ledger debited.

    1. Card and weights are of one piece. 2. A module with a privacy claim was debited, with these
    weights and this card. 3. The claim is for the reserved unit, and no lower than the charge.

    Args:
        owner: name of the ledger; modules whose folder and card name others are left out.
        modules: weights, as `find_modules` returns them.
        debited: what was charged for each module, by the digest of its weights.
        unfinished: digests of jobs that were reserved and not debited; what they sealed in the
            node's home is left out.

    """
    for path in modules:
        sealed = path.parent.parent
        if sealed.name == SEALED_FOLDER and sealed.parent.name in unfinished:
            continue
        if owner in (path.parent.name, _owner_on_card(path)):
            yield from (f"module {path}: {fault}" for fault in _faults(path, debited))


def _owner_on_card(weights: Path) -> str | None:
    from models.expert_module import read_card  # noqa: PLC0415

    try:
        return read_card(weights).owner
    except (ValueError, OSError):
        return None


def _faults(path: Path, debited: Mapping[str, ModuleSpend]) -> Iterator[str]:
    # Cards are read with the models, which take a second to import.
    from models.durable import file_digest  # noqa: PLC0415
    from models.expert_module import card_path, read_card  # noqa: PLC0415

    try:
        card, digest = read_card(path), file_digest(path)
    except (ValueError, OSError) as error:
        yield f"its card or weights cannot be read: {error}"
        return
    if (digest, digest) != (path.stem, card.weights_digest):  # 1
        yield "its weights were altered: their digest is not that of its name and card"
        return
    if card.owner != path.parent.name:  # 1
        yield f"its card names {card.owner!r}, and its folder {path.parent.name!r}"
    spend = debited.get(digest)
    if spend is None:  # 2
        if not isinstance(card.privacy, str):
            yield "it claims an epsilon and was never debited"
        return
    if file_digest(card_path(path)) != spend.card_digest:  # 2
        yield "its card is not the one that was debited"
    if isinstance(card.privacy, str):
        return
    claim, charged = card.privacy, spend.epsilon_micro
    if charged is None or claim.epsilon_micro < charged or claim.delta_1e15 < spend.delta_1e15:  # 3
        yield (
            f"it claims epsilon {format_micro(claim.epsilon_micro)}, and "
            f"{format_micro(charged)} was charged, or a lower delta than was charged"
        )
    if claim.unit != spend.unit:  # 3
        yield f"it claims to protect the unit {claim.unit!r}, and {spend.unit!r} was reserved"
