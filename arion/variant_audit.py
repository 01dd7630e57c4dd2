"""The audit of one artefact: canaries that a coin put into training, and its own runtime's losses.

`arion privacy plant --coins` draws secrets and tosses a fair coin for each; those of one side go
into a node's shard, each a privacy unit of its own. Here the artefact's losses tell which they
were, as far as they can, and how often that is right bounds epsilon from below
(`privacy.audit.one_run`).

Shapes: M canaries, T positions, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import numpy as np
import torch

from arion.audit_secrets import PlantedSecret, load_secrets, other_candidates, sentence
from client.entropy import Entropy
from models.durable import file_digest
from models.formats.shards import Advance
from models.variants.claims import Audited, LedgerClaim
from models.variants.extras import VariantError
from models.variants.kinds import KINDS, Opening
from models.variants.plan import Plan
from models.variants.runtime import Runtime
from privacy.audit.one_run import audit_scores, most_that_can_show

CONFIDENCE = 0.95
_LEAST = 10


@dataclass(frozen=True)
class Canaries:
    """Secrets whose coins are known to the auditor.

    Attributes:
        digest: SHA-256 of the file they came from. delta: that epsilon is bounded at.
        tries: other candidates that each is held against.

    """

    secrets: tuple[PlantedSecret, ...]
    digest: str
    delta: float
    tries: int


def read_canaries(
    path: Path, delta: float | None, claims: Sequence[LedgerClaim], tries: int
) -> Canaries:
    """Read what `arion privacy plant --coins` kept outside the shard.

    Args:
        delta: None for the largest of the ledgers' claims.

    Raises:
        ValueError: not such a file, too few canaries, no delta, or one below the claims'.

    """
    secrets = load_secrets(path)
    tossed = [secret.included for secret in secrets]
    if None in tossed or len(tossed) < _LEAST or len(set(tossed)) < 2:
        raise VariantError(
            f"Expected at least {_LEAST} secrets in {path}, some left out by a coin, got "
            f"{len(tossed)} of which {tossed.count(None)} had no coin. Plant them with `arion "
            "privacy plant --coins` before training."
        )
    if delta is None and not claims:
        raise VariantError(
            "Expected --audit-delta, or --ledger to take it from, got neither. Epsilon is bounded "
            "at a delta."
        )
    claimed = max((claim.delta_1e15 for claim in claims), default=0) / 1e15
    if delta is not None and delta < claimed:
        raise VariantError(
            f"Expected --audit-delta of at least {claimed:.3g}, which the ledgers claim at, got "
            f"{delta:.3g}. A claim says nothing of a smaller one: leave it out."
        )
    return Canaries(secrets, file_digest(path), claimed if delta is None else delta, tries)


def audit_artefact(
    plan: Plan,
    folder: Path,
    begin: int,
    canaries: Canaries,
    *,
    entropy: Entropy,
    advance: Advance = lambda done, total: None,
) -> Audited:
    """Attack an artefact in its own runtime.

    A canary's score is how much likelier its secret is than others that could have been drawn, on
    average, in nats: what the artefact makes of the prompt and of digits as such falls out.

    Args:
        begin: id of begin-of-text. entropy: of the other candidates.
        advance: called with (canaries scored, canaries in all).

    Raises:
        MissingExtraError: the runtime is not installed.
        ValueError: a canary is longer than the context, or has no finite loss.

    """
    texts = [_texts(each, canaries.tries, entropy, m) for m, each in enumerate(canaries.secrets)]
    runtime = KINDS[plan.container].open(folder, Opening(plan.context, begin))
    score_M = np.empty(len(texts))
    try:
        for number, candidates in enumerate(texts):
            nats = [_nats(runtime, text, plan.context) for text in candidates]
            score_M[number] = np.mean(nats[1:]) - nats[0]
            advance(number + 1, len(texts))
    finally:
        runtime.close()
    included_M = np.array([secret.included for secret in canaries.secrets], np.bool_)
    bound, guesses = audit_scores(score_M, included_M, canaries.delta, CONFIDENCE)
    return Audited(
        canaries=len(texts),
        included=int(included_M.sum()),
        tries=canaries.tries,
        delta=canaries.delta,
        confidence=CONFIDENCE,
        epsilon_at_least=bound,
        guessed=guesses.guessed,
        correct=guesses.correct,
        most_it_can_show=most_that_can_show(len(texts), canaries.delta, CONFIDENCE),
        secrets=canaries.digest,
    )


def refutation(audited: Audited, claims: Sequence[LedgerClaim]) -> str | None:
    """Say what an audit refutes; None where no claim is below its bound.

    Which node held the canaries is not known here, so the largest claim is held against it.
    """
    claimed = [claim.epsilon_micro for claim in claims]
    if not claimed or None in claimed:
        return None
    largest = max(each for each in claimed if each is not None) / 1e6
    if audited.epsilon_at_least <= largest:
        return None
    return (
        f"REFUTED: an attack shows epsilon of at least {audited.epsilon_at_least:.4f} at delta "
        f"{audited.delta:.3g}, over the {largest:.4f} that the ledgers charged; nothing of that "
        "training may be released until the fault is found"
    )


def _texts(secret: PlantedSecret, tries: int, entropy: Entropy, number: int) -> list[str]:
    """The canary as its records hold it, then as it might have been."""
    others = other_candidates(secret, tries, entropy, number)
    return [normalize("NFC", sentence(secret, each)) for each in (secret.secret, *others)]


def _nats(runtime: Runtime, text: str, context: int) -> float:
    ids = runtime.encode(text)
    if len(ids) > context:
        raise VariantError(
            f"Expected canaries of at most {context} tokens, the artefact's context, got one of "
            f"{len(ids)}. Raise --context."
        )
    log_p_TV = runtime.logits(ids[:-1]).double().log_softmax(-1)
    nats = -log_p_TV.gather(-1, torch.tensor(ids[1:])[:, None]).sum().item()
    if not np.isfinite(nats):
        raise VariantError("Expected a finite loss of every canary, got another. It is void.")
    return float(nats)
