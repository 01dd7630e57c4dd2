"""From a model to an artefact that ships: plan, write, run, pass or not pass, publish.

Nothing stands at the artefact's place until it has passed; a plan that fails is tried no further,
and the next that fits is.
"""

import shutil
from pathlib import Path

from arion.progress import Progress, Stage
from arion.variant_audit import audit_artefact, refutation
from arion.variant_dense import teach, work_folder
from arion.variant_order import ExportOrder, Prepared
from arion.variant_publication import passport_for, publish
from client.entropy import Entropy
from models.variants.check import Checked, failures, run_artefact
from models.variants.claims import Audited
from models.variants.extras import MissingExtraError, VariantError
from models.variants.kinds import KINDS
from models.variants.passport import Missing, Passport
from models.variants.plan import Plan
from privacy.audit.one_run import AuditError


def export(order: ExportOrder, prepared: Prepared, progress: Progress) -> Passport:
    """Carry the plans out in order until one passes, and publish that.

    Raises:
        VariantError: none passed; said with why, and with what came nearest.

    """
    part, work = order.out.with_name(order.out.name + ".part"), work_folder(order.out)
    taught = None if prepared.teaching is None else teach(prepared.teaching, work, progress)
    reasons = []
    for plan in prepared.selected.plans:
        shutil.rmtree(part, ignore_errors=True)
        try:
            found = _make(plan, part, prepared, progress)
            failed = (
                () if isinstance(found, Missing) else failures(found, plan, order.wanted.target)
            )
            audited = None if failed else _audit(plan, part, prepared, found, progress)
            if not failed:
                passport = passport_for(prepared, plan, part, found, taught)
                if audited is not None:
                    passport = passport.model_copy(update={"audited": audited})
                published = publish(order, prepared.key, part, passport)
                shutil.rmtree(work, ignore_errors=True)
                return published
        except VariantError as error:
            failed = (str(error),)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        progress.note(f"{plan.name}: not published: {'; '.join(failed)}")
        reasons.append(f"{plan.name}: {'; '.join(failed)}")
    if taught is not None:
        progress.note(f"The distilled weights are kept in {work}: another try begins with them.")
    raise VariantError(
        f"Expected an artefact that passes, got none of {len(reasons)} tried. "
        f"{' | '.join(reasons)}. Nothing was published; the last comes nearest in size and speed, "
        "the first in quality. Ask for more --bits or another --format, or for less of the target."
    )


def _make(plan: Plan, part: Path, prepared: Prepared, progress: Progress) -> Checked | Missing:
    """Write an artefact and run it; Missing where its runtime is not installed."""
    source, kind = prepared.selected.source, KINDS[plan.container]
    advance = Stage(progress, f"writing {plan.number_format}")
    kind.write(source.model, source.tokenizer, part, plan.number_format, advance)
    texts = {text.name: text.texts for text in prepared.heldout}
    try:
        return run_artefact(plan, part, source, texts, Stage(progress, "comparing texts"))
    except MissingExtraError as error:
        progress.note(f"Not checked: {error}")
        return Missing(missing_extra=error.extra)


def _audit(
    plan: Plan, part: Path, prepared: Prepared, found: Checked | Missing, progress: Progress
) -> Audited | None:
    """Attack an artefact that passed; None where nobody asked.

    Raises:
        AuditError: more is shown than was claimed, or the artefact cannot be run. No other plan is
            tried then: a coarser one may hide what was found, and the fault is in the training.

    """
    if prepared.canaries is None:
        return None
    if isinstance(found, Missing):
        raise AuditError(
            f"Expected an artefact that runs here, to audit it, got no runtime. Run pip install "
            f"'arion-federated[{found.missing_extra}]', or export without --canaries."
        )
    begin, advance = prepared.parent.tokenizer.begin_of_text_id, Stage(progress, "canaries")
    audited = audit_artefact(
        plan, part, begin, prepared.canaries, entropy=Entropy(None), advance=advance
    )
    if said := refutation(audited, prepared.ledger):
        raise AuditError(said)
    return audited
