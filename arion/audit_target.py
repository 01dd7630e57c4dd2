"""What `arion privacy audit` can be given: a run file, a finished simulated run, or a model folder.

| given | claim | canaries | membership | secrets |
|---|---|---|---|---|
| RUN.toml | what the plan costs | yes | - | - |
| folder of a run | what the ledgers charged | yes | every institution's split | planted ones |
| model folder | - | - | given records | a given file |

The canaries are drawn here and are all that the canary audits train on. Membership and secrets read
private records: they are for whoever holds them, which in production is the node alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from arion.audit_canaries import CanaryAudit, Claim
from arion.audit_membership import MembershipAudit, Suspects
from arion.audit_parts import Auditor, Wanted
from arion.audit_secrets import SecretFinding
from arion.audit_training import AuditedTraining
from arion.corpus import Corpus, open_corpus
from arion.institutions import own_config
from arion.mechanism import choose_recipe
from arion.plan_cli import members_of
from arion.planner import plan_run, unit_of
from arion.progress import Progress
from arion.run_file import RunFile, load_run_file
from arion.simulate import RUN_FILE
from client.data import DataConfig, Record, detect_config, read_shard
from client.training import UnitRows, unit_rows
from coordinator.settings import RunSettings, load_settings
from models.config import preset
from models.decoder import Decoder
from models.folders import open_model
from models.language_model import LanguageModel
from models.recipe import prepare
from models.tokenizer import Tokenizer
from models.training_settings import Recipe
from privacy.audit.one_run import AuditError
from privacy.ledger.entries import EPSILON_UNITS
from privacy.ledger.pins import PINS_FILE, load_pins
from privacy.ledger.verify import verify_tree

_TARGET = 1.0  # of the outlook's cohort, which an audit does not show


@dataclass(frozen=True)
class Audit:
    """All that was found out about one target.

    Attributes:
        noise: how a run's nodes drew their noise, by their ledgers; None for what did not run.

    """

    target: str
    wanted: Wanted
    claim: Claim | None
    canaries: CanaryAudit | None = None
    membership: tuple[MembershipAudit, ...] = ()
    secrets: tuple[SecretFinding, ...] = ()
    noise: str | None = None

    @property
    def is_refuted(self) -> bool:
        """Whether a bound is above the claim."""
        return self.canaries is not None and self.canaries.is_refuted


def audit_target(target: Path, wanted: Wanted, progress: Progress) -> Audit:
    """Audit what lies at a path.

    Raises:
        ValueError: it is none of the three, or an option that it needs or forbids.

    """
    auditor = Auditor(wanted, progress)
    if target.is_file():
        return _audit_run_file(target, auditor)
    if (target / RUN_FILE).is_file():
        return _audit_run(target, auditor)
    if (target / "config.json").is_file():
        return _audit_model(target, auditor)
    raise AuditError(
        "Expected a RUN.toml, the folder of a finished `arion simulate` run or a model folder, "
        f"got {target}. Check the path."
    )


def _audit_run_file(path: Path, auditor: Auditor) -> Audit:
    wanted = auditor.wanted
    _refuse(wanted, "a run file", "members", "others", "secrets", "references")
    run = load_run_file(path, {})
    if wanted.units_per_node is None:
        raise AuditError(
            "Expected the units that each member of the run trains on, got no --units-per-node. "
            "Give it: the claim depends on it."
        )
    unit = unit_of(run)
    outlook = plan_run(
        run,
        nodes=members_of(run, wanted.nodes),
        units_per_node=wanted.units_per_node,
        unit=unit,
        target=_TARGET,
    )
    claim = Claim(outlook.epsilon[-1][1], outlook.delta, f"the schedule of {path.name}")
    training = None
    if wanted.text_canaries:
        recipe = choose_recipe(run, unit, Path(run.model.base))
        optimiser = run.training.optimiser(run.training.learning_rate)
        training = AuditedTraining(_first_model(run, recipe), outlook.step, recipe, optimiser)
    return Audit(path.name, wanted, claim, auditor.canaries(outlook.step, training, claim))


def _first_model(run: RunFile, recipe: Recipe) -> LanguageModel:
    """The model that a run file names; a preset as it is drawn, before any warm-up."""
    base = Path(run.model.base)
    if base.is_dir():
        model = open_model(base)[0]
    else:
        generator = torch.Generator().manual_seed(run.public_seed)
        model = Decoder(preset(run.model.base), generator)
    prepare(model, recipe)
    return model


def _audit_run(folder: Path, auditor: Auditor) -> Audit:
    wanted = auditor.wanted
    _refuse(wanted, "a run's folder", "members", "others", "nodes", "units_per_node")
    run = RunFile.model_validate_json((folder / RUN_FILE).read_text())
    if run.compare.seeds or not (folder / "model").is_dir():
        raise AuditError(
            f"Expected a finished run of `arion simulate` in {folder}, got a comparison or a run "
            "without its model. Audit a single run, or go on with it by --resume."
        )
    settings = load_settings(folder / "coordinator")
    claim, noise = _charged(folder, run)
    corpus = open_corpus(run.data.path or folder / "data" / "private", run)
    model, tokenizer = open_model(folder / "model")
    planted = folder / "data" / "secrets.json"
    listing = wanted.secrets or (planted if planted.is_file() else None)
    suspects = _suspects_of(corpus, tokenizer, settings.recipe)
    trained = [text for each in suspects for text in _texts_of(each.members, tokenizer)]
    secrets = auditor.secrets(model, tokenizer, listing, trained)
    membership = auditor.membership(model, (folder / "base", *wanted.references), suspects)
    canaries = None if claim is None else _run_canaries(folder, settings, claim, auditor)
    return Audit(folder.name, wanted, claim, canaries, membership, secrets, noise)


def _run_canaries(
    folder: Path, settings: RunSettings, claim: Claim, auditor: Auditor
) -> CanaryAudit:
    """Attack the mechanism and the training of a run, from the model that it started from."""
    training = None
    if auditor.wanted.text_canaries:
        model, recipe = open_model(folder / "base")[0], settings.recipe
        prepare(model, recipe)
        training = AuditedTraining(model, settings.step, recipe, settings.optimiser)
    return auditor.canaries(settings.step, training, claim)


def _charged(folder: Path, run: RunFile) -> tuple[Claim | None, str]:
    """Return the largest epsilon that a ledger was charged, if there is one, and the noise.

    Raises:
        AuditError: a ledger that does not hold: no claim can be taken from it.

    """
    reports = verify_tree(folder, load_pins(folder / PINS_FILE))
    if bad := sorted(report.name for report in reports if not report.is_ok):
        raise AuditError(
            f"Expected ledgers that hold, got failures in {', '.join(bad)}: no claim can be read "
            "from them. See `arion privacy ledger verify`."
        )
    nodes = [report for report in reports if report.kind == "node"]
    spent = [report.epsilon_micro for report in nodes if report.epsilon_micro is not None]
    if not run.privacy.enabled or not spent or len(spent) < len(nodes):
        return None, "none"
    claim = Claim(max(spent) / EPSILON_UNITS, run.privacy.delta, "the nodes' ledgers")
    return claim, "; ".join(sorted({report.noise for report in nodes}))


def _audit_model(folder: Path, auditor: Auditor) -> Audit:
    wanted = auditor.wanted
    _refuse(wanted, "a model folder", "nodes", "units_per_node")
    if (wanted.members is None) != (wanted.others is None):
        raise AuditError("Expected both --members and --nonmembers or neither, got one. Give both.")
    if wanted.members is None and wanted.secrets is None:
        raise AuditError(
            "Expected something to attack a model folder with, got neither --members and "
            "--nonmembers nor --secrets. A model alone shows nothing."
        )
    model, tokenizer = open_model(folder)
    membership: tuple[MembershipAudit, ...] = ()
    trained = None
    if wanted.members is not None and wanted.others is not None:
        recipe = Recipe(sequence_length=min(model.max_positions, 128), sequences_per_unit=4)
        members, others = _records(wanted.members), _records(wanted.others)
        _refuse_overlap(members, others)
        suspects = Suspects(
            folder.name,
            unit_rows(members, tokenizer, recipe),
            unit_rows(others, tokenizer, recipe),
        )
        membership = auditor.membership(model, wanted.references, [suspects])
        trained = [record.text for record in members]
    secrets = auditor.secrets(model, tokenizer, wanted.secrets, trained)
    return Audit(folder.name, wanted, None, membership=membership, secrets=secrets)


def _suspects_of(corpus: Corpus, tokenizer: Tokenizer, recipe: Recipe) -> list[Suspects]:
    """Every node's trained units, and those it kept from training, cut as training cuts them."""
    return [
        Suspects(
            name,
            unit_rows(split.train, tokenizer, recipe),
            unit_rows((*split.heldout, *split.validation), tokenizer, recipe),
        )
        for name, split in corpus.splits.items()
    ]


def _texts_of(units: UnitRows, tokenizer: Tokenizer) -> list[str]:
    """What training reads of units: the text of every sequence, without what the caps cut off."""
    return [tokenizer.decode(row.ids) for unit in units.rows for row in unit]


def layout_of(path: Path) -> DataConfig:
    """What a shard's fields mean, by its own `data.toml` or by common names."""
    return (own_config(path) if path.is_dir() else None) or detect_config(path)


def _records(path: Path) -> tuple[Record, ...]:
    return read_shard(path, layout_of(path))


def _refuse_overlap(members: Sequence[Record], others: Sequence[Record]) -> None:
    texts = {record.text for record in members}
    both = sum(record.text in texts for record in others)
    if both:
        raise AuditError(
            f"Expected non-members that were not trained on, got {both} records with the text of a "
            "member. Remove them."
        )


def _refuse(wanted: Wanted, what: str, *names: str) -> None:
    given = [name for name in names if getattr(wanted, name)]
    if given:
        options = {"others": "nonmembers", "references": "reference"}
        shown = ", ".join("--" + options.get(name, name).replace("_", "-") for name in given)
        raise AuditError(f"Expected {what} without {shown}, got it. Leave it out.")
