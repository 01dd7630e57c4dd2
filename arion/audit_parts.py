"""The parts of an audit, as the user chose them: canaries, membership, secrets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arion.audit_canaries import Bound, CanaryAudit, Claim, share_of_confidence
from arion.audit_mechanism import audit_mechanism
from arion.audit_membership import MembershipAudit, Suspects, audit_membership
from arion.audit_secrets import SecretFinding, audit_secrets, load_secrets
from arion.audit_training import AuditedTraining, audit_training
from arion.progress import Progress
from client.entropy import Entropy
from models.folders import open_model
from models.language_model import LanguageModel
from models.tokenizer import Tokenizer
from privacy.audit.one_run import AuditError
from privacy.dp.plan import PrivateStep


@dataclass(frozen=True)
class Wanted:
    """What the user chose.

    Attributes:
        canaries: of the mechanism audit. text_canaries: of the audit through training; 0: none.
        tries: candidates for each secret.
        confidence: of all bounds at once, of all intervals at once.
        seed: repeats an audit; None draws anew.
        references: further models that saw no member.
        members, others: records, for a model folder. secrets: a secrets file.
        nodes, units_per_node: for a run file.

    """

    canaries: int
    text_canaries: int
    tries: int
    confidence: float
    seed: int | None
    references: tuple[Path, ...] = ()
    members: Path | None = None
    others: Path | None = None
    secrets: Path | None = None
    nodes: int | None = None
    units_per_node: int | None = None


@dataclass(frozen=True)
class Auditor:
    """Carries the parts out.

    Attributes:
        wanted: what the user chose. progress: who is told.

    """

    wanted: Wanted
    progress: Progress

    def canaries(
        self, step: PrivateStep, training: AuditedTraining | None, claim: Claim
    ) -> CanaryAudit:
        """Attack releases alone, then training; the error is shared out over all that is tried."""
        wanted, entropy = self.wanted, Entropy(self.wanted.seed)
        each = share_of_confidence(wanted.confidence, 1 if training is None else 3)
        self.progress.stage("releases", 1)
        bounds: list[Bound] = [
            audit_mechanism(
                step, claim.delta, canaries=wanted.canaries, confidence=each, entropy=entropy
            )
        ]
        self.progress.step(1, "")
        if training is not None:
            self.progress.stage("canary training", step.releases)
            bounds += audit_training(
                training,
                claim.delta,
                canaries=wanted.text_canaries,
                confidence=each,
                entropy=entropy,
                watch=lambda done: self.progress.step(done, ""),
            )
        return CanaryAudit(claim, wanted.confidence, tuple(bounds))

    def membership(
        self, model: LanguageModel, references: Sequence[Path], suspects: Sequence[Suspects]
    ) -> tuple[MembershipAudit, ...]:
        """Attack a model with the losses of units.

        Raises:
            AuditError: a reference with another vocabulary, or too few units.

        """
        opened = [open_model(path)[0] for path in references]
        if any(each.vocab_size != model.vocab_size for each in opened):
            raise AuditError(
                "Expected references that share the model's tokenizer, got another vocabulary: "
                "losses per token could not be compared. Leave that reference out."
            )
        self.progress.stage("membership", len(suspects))
        done: list[str] = []

        def watch(name: str) -> None:
            done.append(name)
            self.progress.step(len(done), name)

        return audit_membership(model, opened, suspects, self.wanted.confidence, watch)

    def secrets(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        listing: Path | None,
        trained: Sequence[str] | None,
    ) -> tuple[SecretFinding, ...]:
        """Measure the exposure of the secrets in a file; none without a file."""
        if listing is None:
            return ()
        secrets = load_secrets(listing)
        self.progress.stage("secrets", len(secrets))
        return audit_secrets(
            model,
            tokenizer,
            secrets,
            tries=self.wanted.tries,
            entropy=Entropy(self.wanted.seed),
            trained_text=trained,
            watch=lambda done: self.progress.step(done, ""),
        )
