"""The report of a simulation as data: what report.json holds and report.html shows."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from arion.corpus import Corpus
from arion.evaluation import Losses
from arion.federation import Homes
from arion.journal import Journal
from arion.run_file import RunFile
from arion.watch import epsilon_so_far
from coordinator.settings import RunSettings, load_settings
from coordinator.suspicion import suspects
from models.checkpoint import model_digest
from models.folders import open_model
from models.language_model import LanguageModel
from models.recipe import prepare
from models.vector import trainable_layout
from privacy.dp.accountant import epsilon_if_all_others_collude
from privacy.identity import fingerprint
from privacy.ledger.entries import EPSILON_UNITS
from privacy.ledger.pins import PINS_FILE, load_pins
from privacy.ledger.verify import verify_tree
from privacy.units import INSTITUTION, RECORD

FEDERATED = {True: "federated_dp", False: "federated"}
"""The arm that a simulation runs, by whether there is noise."""


@dataclass(frozen=True)
class Finished:
    """A simulation that came to its end.

    Attributes:
        settings: of the run.
        vector_length: coordinates of a release.
        model: as it was written, adapters merged.
        losses: by arm, then institution.
        routing: router weight by institution, layer, expert.

    """

    settings: RunSettings
    vector_length: int
    model: LanguageModel
    losses: Mapping[str, Losses]
    routing: Mapping[str, list[list[float]]]


def summarise(
    run: RunFile, corpus: Corpus, homes: Homes, journal: Journal, done: Finished
) -> dict[str, Any]:
    """Put the report of one simulation together; its keys are described in docs/simulate.md."""
    return {
        "kind": "simulation",
        "title": f"Simulated federation of {len(corpus.shares)} nodes",
        **stamp(),
        "arms": {arm: {"heldout_loss": found, "seeds": 1} for arm, found in done.losses.items()},
        **_budget(run, homes, done.settings, done.vector_length),
        **_rounds(run, journal, done.settings, done.vector_length),
        "routing": dict(done.routing),
        "mechanism": describe_mechanism(done.settings),
        "model": {
            "name": run.model.base,
            "parameters": sum(p.numel() for p in done.model.parameters()),
            "trainable": done.vector_length,
            "digest": model_digest(done.model),
            "recipe": done.settings.recipe.kind,
        },
        "institutions": describe_institutions(corpus),
        "run_file": run.model_dump(mode="json"),
    }


def comparison_report(
    run: RunFile,
    corpus: Corpus,
    journal: Journal,
    arms: Mapping[str, Mapping[str, Any]],
    federation: Path | None,
) -> dict[str, Any]:
    """Put the report of a comparison together.

    Args:
        run: what was done.
        corpus: the text.
        journal: of the comparison; its stages' times.
        arms: losses over seeds, rate and time of each.
        federation: root of the federated run with noise whose ledgers say what was spent, if any.

    """
    report: dict[str, Any] = {
        "kind": "comparison",
        "title": f"Arms on the text of {len(corpus.shares)} institutions",
        **stamp(),
        "arms": dict(arms),
        "institutions": describe_institutions(corpus),
        "run_file": run.model_dump(mode="json"),
        "rounds": run.training.rounds,
    }
    if federation is not None:
        homes = Homes(federation, tuple(share.name for share in corpus.shares))
        settings = load_settings(homes.coordinator)
        length = sum(size for _, size in _layout(homes, settings))
        report |= _budget(run, homes, settings, length)
        report |= _rounds(run, Journal.load(federation / "journal.json"), settings, length)
        report["mechanism"] = describe_mechanism(settings)
    return report | {"phases_s": journal.seconds, "seconds": sum(journal.seconds.values())}


def _layout(homes: Homes, settings: RunSettings) -> tuple[tuple[str, int], ...]:
    model, _ = open_model(settings.base_model)
    prepare(model, settings.recipe)
    return trainable_layout(model)


def stamp() -> dict[str, str]:
    """Version and time of a report."""
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"version": version("arion-federated"), "created": created}


def describe_mechanism(settings: RunSettings) -> dict[str, Any]:
    """The numbers of a run's mechanism."""
    return settings.step.model_dump(mode="json") | {
        "n_min": settings.n_min,
        "colluders": settings.colluders,
        "learning_rate": settings.optimiser.learning_rate,
    }


def describe_institutions(corpus: Corpus) -> list[dict[str, Any]]:
    """Who there is, and how much of it."""
    whole = corpus.unit == INSTITUTION
    seen = [
        {
            "name": share.name,
            "label": share.institution.label,
            "records": len(split.train) + len(split.validation) + len(split.heldout),
            "units": 1 if whole else len({record.unit for record in split.train}),
            "unit": INSTITUTION if whole else share.institution.config.unit_field or RECORD,
            "heldout_records": len(split.heldout),
            "unseen": False,
        }
        for share in corpus.shares
        for split in [corpus.splits[share.name]]
    ]
    unseen = [
        {
            "name": institution.name,
            "label": institution.label,
            "records": len(records),
            "units": 0,
            "unit": INSTITUTION if whole else institution.config.unit_field or RECORD,
            "heldout_records": len(records),
            "unseen": True,
        }
        for institution in corpus.unseen
        for records in [corpus.unseen_records[institution.name]]
    ]
    return seen + unseen


def _budget(
    run: RunFile, homes: Homes, settings: RunSettings, vector_length: int
) -> dict[str, Any]:
    """What each node's own ledger says it was charged, after checking the ledgers."""
    pins = load_pins(homes.root / PINS_FILE)
    ledgers = {report.name: report for report in verify_tree(homes.root, pins)}
    spent = {name: ledgers[name].epsilon_micro for name in homes.names}
    step, private = settings.step, settings.step.is_private
    collusion = (
        epsilon_if_all_others_collude(step, run.privacy.delta, vector_length=vector_length)
        if private
        else None
    )
    return {
        "epsilon": {n: None if s is None else s / EPSILON_UNITS for n, s in spent.items()},
        "epsilon_if_all_others_collude": collusion,
        "delta": run.privacy.delta,
        "noise": (ledgers[homes.names[0]].noise if private else "none"),
        "ledger": {
            "ok": all(report.is_ok for report in ledgers.values()),
            "coordinator_entries": ledgers["coordinator"].entries,
            "fingerprints": {name: fingerprint(pin.key) for name, pin in sorted(pins.items())},
        },
    }


def _rounds(
    run: RunFile, journal: Journal, settings: RunSettings, vector_length: int
) -> dict[str, Any]:
    numbers = range(1, settings.rounds + 1)
    found: dict[str, Any] = {
        "rounds": settings.rounds,
        "seconds": sum(journal.seconds.values()),
        "phases_s": dict(journal.seconds),
        "attempts": [journal.attempts[place] for place in sorted(journal.attempts)],
        "suspects": _suspects(journal),
    }
    if all(number in journal.losses for number in (0, *numbers)):
        names = [name for name in journal.losses[0] if name not in ("mean", "unseen")]
        found["loss_per_round"] = [journal.losses[number]["mean"] for number in numbers]
        found["loss_by_institution_per_round"] = {
            name: [journal.losses[number][name] for number in (0, *numbers)] for name in names
        }
    if settings.step.is_private:
        found["epsilon_per_round"] = [
            epsilon_so_far(settings, number, run.privacy.delta, vector_length) for number in numbers
        ]
    return found


def _suspects(journal: Journal) -> list[dict[str, Any]]:
    """Members that were in spoilt groups more often than chance explains."""
    history = [
        ((*at["survivors"], *at.get("spoilt", ())), at.get("spoilt", ()))
        for at in journal.attempts.values()
    ]
    return [asdict(suspect) for suspect in suspects(history)]
