"""A run's settings, as the coordinator holds them: one frozen object in the run's home."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from coordinator.errors import RunError
from models.faults import first_fault
from models.training_settings import OptimiserSettings, Recipe
from privacy.canonical import canonical_bytes, sha256_hex
from privacy.dp.plan import PrivateStep
from privacy.ledger.files import replace_durably
from privacy.secagg.parameters import (
    LARGEST_SPARSE,
    SMALLEST_COHORT,
    choose_parameters,
    failure_of,
)

SETTINGS_FILE = "run.json"

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}$")]
PublicKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class RunSettings(BaseModel):
    """What a run consists of.

    Attributes:
        federation, run: identifiers; a run reserves one schedule.
        members: pinned identity keys by name, hex; an epoch may be without those that are away.
        groups: random groups of an attempt, each summed for itself; a divisor of the members.
        n_min: least number of members in a group's sum.
        colluders: members that may conspire, c.
        rounds: optimiser steps; `step.releases` of the schedule also covers new attempts.
        step: the mechanism.
        recipe: local training.
        optimiser: what is done with the sums.
        base_model: model folder that the run starts from, relative to the run's home.
        coordinator: folder of what all runs of a coordinator share (its key, its ledger, the count
            of epochs, the heads of members' ledgers), relative to the run's home.
        plausible_batches: multiples of the expected batch that a sum may hold before it is refused.
        runtime: where the nodes run.
        seeded: noise that anyone can recompute; for simulations.
        deadline_s: how long a phase waits for members at most.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    federation: str = Field(min_length=1, max_length=200)
    run: str = Field(min_length=1, max_length=200)
    members: dict[Name, PublicKey] = Field(min_length=SMALLEST_COHORT, max_length=LARGEST_SPARSE)
    groups: int = Field(default=1, ge=1)
    n_min: int = Field(ge=2)
    colluders: int = Field(ge=1)
    rounds: int = Field(ge=1)
    step: PrivateStep
    recipe: Recipe
    optimiser: OptimiserSettings
    base_model: Path
    coordinator: Path = Path()
    plausible_batches: float = Field(default=2.0, ge=1)
    runtime: Literal["simulate", "arion-grpc", "flower"]
    seeded: bool = False
    deadline_s: float = Field(default=600.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        size, uneven = divmod(len(self.members), self.groups)
        if uneven:
            raise ValueError(
                f"Expected groups that divide {len(self.members)} members, got {self.groups}. "
                "Change federation.groups."
            )
        if not self.colluders < self.n_min <= size:
            raise ValueError(
                f"Expected colluders < n_min <= {size} members, got {self.colluders} and "
                f"{self.n_min}. Change federation.n_min, groups or colluders."
            )
        choose_parameters(size, self.colluders, size - self.n_min)
        if self.step.honest_survivors != self.n_min - self.colluders:
            raise ValueError(
                f"Expected honest_survivors = n_min - colluders = {self.n_min - self.colluders}, "
                f"got {self.step.honest_survivors}."
            )
        if self.step.releases < self.rounds:
            raise ValueError(
                f"Expected a schedule of at least {self.rounds} releases, got "
                f"{self.step.releases}. Raise privacy.spare_releases."
            )
        return self

    @property
    def failure(self) -> float:
        """Part of delta that is for a random graph or a committee that fails."""
        return failure_of(len(self.members) // self.groups)

    def recipe_json(self) -> bytes:
        """The recipe's canonical bytes, as nodes receive them."""
        return canonical_bytes(self.recipe.model_dump(mode="json"))

    def recipe_digest(self) -> str:
        """What plans name the recipe by, hex."""
        return sha256_hex(self.recipe_json())


def save_settings(home: Path, settings: RunSettings) -> None:
    """Write `run.json` durably."""
    replace_durably(home / SETTINGS_FILE, settings.model_dump_json(indent=2).encode() + b"\n")


def load_settings(home: Path) -> RunSettings:
    """Read `run.json`, with its paths made absolute.

    Raises:
        RunError: missing or not a run's settings.

    """
    path = home / SETTINGS_FILE
    try:
        settings = RunSettings.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise RunError(f"{path}: {first_fault(error, 'run')}. Correct this key.") from error
    except OSError as error:
        raise RunError(
            f"Expected a run's settings at {path}, got {error.strerror}. Check the folder."
        ) from error
    places = ("base_model", "coordinator")
    return settings.model_copy(update={name: home / getattr(settings, name) for name in places})
