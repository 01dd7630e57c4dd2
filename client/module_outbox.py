"""Modules of owned experts on the node's disk: in training, sealed, and as they leave."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from client.reservation import noise_label
from models.durable import file_digest, put
from models.expert_module import Facts, PrivacyClaim, card_path, modules_in, write_module
from privacy.experts_job import ExpertsJob
from privacy.ledger.files import make_directory, sync_directory
from privacy.ledger.modules import SEALED_FOLDER


class ModuleError(ValueError):
    """A sealed module that cannot leave as it was sealed."""


@dataclass(frozen=True)
class SealedModule:
    """A module as it leaves the node; only `ModuleOutbox` makes one.

    Attributes:
        weights: the safetensors file in the node's home; its card lies beside it.
        digest: SHA-256 of the weights, hex: what the ledger's debit names.
        card_digest: SHA-256 of the card, hex: the same.

    """

    weights: Path
    digest: str
    card_digest: str

    def publish(self, folder: Path) -> Path:
        """Copy the sealed bytes to `folder`/<owner>, the card last; return the weights there.

        Raises:
            ModuleError: the bytes changed since they were sealed; nothing appears under a name
                that a module has.

        """
        place = folder / self.weights.parent.name
        make_directory(place)
        card = card_path(self.weights)
        for source, digest in ((self.weights, self.digest), (card, self.card_digest)):
            part = place / (source.name + ".part")
            shutil.copyfile(source, part)
            if file_digest(part) != digest:
                part.unlink()
                raise ModuleError(
                    f"Expected the bytes that were sealed in {source}, got others. Run the same "
                    "command again; if it refuses, the module stays charged and is lost."
                )
            put(part, place / source.name)
        return place / self.weights.name


class ModuleOutbox:
    """One folder per job: what a crash must not lose, and the module that was sealed.

    Args:
        folder: created if absent.

    """

    def __init__(self, folder: Path) -> None:
        make_directory(folder)
        self._folder = folder

    def workshop(self, job_digest: bytes) -> Path:
        """Where a training keeps its state: 0700, never released."""
        place = self._folder / job_digest.hex()
        make_directory(place)
        return place

    def seal(self, job_digest: bytes, tensors: Mapping[str, Tensor], facts: Facts) -> SealedModule:
        """Write a module durably and return it as it was written.

        Raises:
            OwnedError: a tensor that is not finite; nothing was sealed.

        """
        place = self._sealed(job_digest)
        make_directory(place / facts.owner)
        weights = write_module(place, tensors, facts)
        return _as_written(weights)

    def load(self, job_digest: bytes) -> SealedModule | None:
        """Return the module sealed for a job, or None where there is none or several."""
        found = list(modules_in(self._sealed(job_digest)))
        return _as_written(found[0]) if len(found) == 1 else None

    def forget_unfinished(self, job_digest: bytes) -> None:
        """Remove a module that was sealed and never debited; the training's state stays."""
        place = self._sealed(job_digest)
        if place.exists():
            shutil.rmtree(place)
            sync_directory(place.parent)

    def forget_training(self, job_digest: bytes) -> None:
        """Remove a training's state, once its module was debited."""
        for path in self.workshop(job_digest).iterdir():
            if path.is_file():
                path.unlink()
        sync_directory(self.workshop(job_digest))

    def _sealed(self, job_digest: bytes) -> Path:
        return self._folder / job_digest.hex() / SEALED_FOLDER


def facts_of(job: ExpertsJob, epsilon_micro: int, ledger: str, entry: int) -> Facts:
    """What a module's card says: the job and its charge, and nothing that was computed from data.

    Args:
        job: the job.
        epsilon_micro: what was charged, in millionths.
        ledger: name of the node's ledger. entry: index of the reservation in it.

    """
    claim = PrivacyClaim(
        epsilon_micro=epsilon_micro,
        delta_1e15=job.delta_1e15,
        unit=job.plan.step.unit,
        accountant="PLD, add or remove one unit, whole training charged",
        ledger=f"{ledger}, entry {entry}, run {job.run!r}, {noise_label(job)}",
    )
    return Facts(
        owner=job.owner,
        data=job.data,
        licence=job.licence,
        privacy=claim,
        base_digest=job.base_digest,
        sources=job.sources,
        recipe={"job": job.model_dump(mode="json")},
    )


def _as_written(weights: Path) -> SealedModule:
    return SealedModule(weights, file_digest(weights), file_digest(card_path(weights)))
