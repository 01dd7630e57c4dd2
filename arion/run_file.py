"""RUN.toml: what a run does. Every key has a default; command-line options override it."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.faults import first_fault, place_of
from models.training_settings import OptimiserSettings, WarmUp
from privacy.dp.plan import SMALLEST_CLIPPING_NORM, Clipping
from privacy.secagg.parameters import LARGEST_SPARSE

Arm = Literal["local", "local_dp", "federated", "central", "federated_dp", "central_dp"]
ARMS: tuple[Arm, ...] = get_args(Arm)


class RunFileError(ValueError):
    """A run file that cannot be carried out as written."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSection(_Section):
    """Where the text comes from.

    Attributes:
        path: folder of institutions; None generates an invented federation.
        config: `data.toml` for all institutions; None uses their own, or detects.
        public: files and folders of public text for tokenizer and warm-up.
        unseen: institutions that take no part and are only evaluated on.
        heldout, validation: shares of record groups kept from training.
        evaluate_records: records per institution in the final evaluation, at most.
        evaluate_each_round: records per institution after each round; 0 does not evaluate.

    """

    path: Path | None = None
    config: Path | None = None
    public: tuple[Path, ...] = ()
    unseen: tuple[str, ...] = ()
    heldout: float = Field(default=0.1, gt=0, lt=1)
    validation: float = Field(default=0.1, gt=0, lt=1)
    evaluate_records: int = Field(default=500, ge=1)
    evaluate_each_round: int = Field(default=48, ge=0)


class ModelSection(_Section):
    """Where the run starts.

    Attributes:
        base: a preset (warmed up on public text), or a model folder.
        warm_up: settings of the warm-up.

    """

    base: str = "nano"
    warm_up: WarmUp = WarmUp()


class TrainingSection(_Section):
    """How nodes and server train.

    Attributes:
        kind: "full" (all but routers) or "lora"; None is "full" where the model is our decoder, and
            "lora" for other classes, which train in no other way.
        rounds: optimiser steps.
        expected_batch: privacy units drawn per round over all nodes, on average.
        learning_rate: highest rate of the server's Adam.
        sequence_length: tokens.
        sequences_per_unit: cap; None is 1 where the unit is a record, and 4 elsewhere.
        lora_rank, lora_alpha: of the adapters.
        bias_correction: take the noise's variance off Adam's second moment.
        average_decay: of the moving average of the parameters that is handed out; 0 for none.

    """

    kind: Literal["full", "lora"] | None = None
    rounds: int = Field(default=20, ge=1, le=100_000)
    expected_batch: float = Field(default=128.0, gt=0)
    learning_rate: float = Field(default=2e-3, gt=0)
    sequence_length: int = Field(default=128, ge=2)
    sequences_per_unit: int | None = Field(default=None, ge=1, le=64)
    lora_rank: int = Field(default=8, ge=1)
    lora_alpha: float = Field(default=16.0, gt=0)
    bias_correction: bool = False
    average_decay: float = Field(default=0.0, ge=0, lt=1)

    def optimiser(self, learning_rate: float) -> OptimiserSettings:
        """Return the server's optimiser at a rate."""
        return OptimiserSettings(
            learning_rate=learning_rate,
            bias_correction=self.bias_correction,
            average_decay=self.average_decay,
        )


class PrivacySection(_Section):
    """The budget; apart from everything that only concerns speed.

    Attributes:
        enabled: False runs without noise and without clipping: no privacy.
        epsilon, delta: for the whole schedule, per privacy unit and node.
        unit: "institution" clips each member's contribution as a whole, and draws nothing; None
            takes the data's own unit, a field or each record.
        clipping_norm: C.
        clipping: how a unit's gradient is brought within C, see `privacy.dp.coefficients`.
        spare_releases: releases of the schedule kept for new attempts; None takes 0 without
            drop-outs, and as many as are likely to be needed with them.

    """

    enabled: bool = True
    epsilon: float = Field(default=8.0, gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1e-3)
    unit: Literal["institution"] | None = None
    clipping_norm: float = Field(default=1.0, ge=SMALLEST_CLIPPING_NORM)
    clipping: Clipping = "fixed"
    spare_releases: int | None = Field(default=None, ge=0)


class FederationSection(_Section):
    """Who takes part.

    Attributes:
        nodes: None makes one node for each institution.
        colluders: members that may conspire with the coordinator, c.
        groups: random groups of each attempt, every one summed for itself.
        sparse_graph: whether more than 50 members of a group may be summed over a random graph,
            which fails with probability 2^-40, taken from delta.
        n_min: least members in a group's sum; None is all of them without drop-outs.
        drop: chance that a node drops out of a round.
        ring_bits: width of the ring of masked words; without noise it is 32.
        plausible_batches: multiples of the batch that a sum may hold before it is refused.

    """

    nodes: int | None = Field(default=None, ge=3, le=LARGEST_SPARSE)
    colluders: int = Field(default=1, ge=1)
    groups: int = Field(default=1, ge=1, le=16)
    sparse_graph: bool = False
    n_min: int | None = Field(default=None, ge=2)
    drop: float = Field(default=0.0, ge=0, lt=0.5)
    ring_bits: Literal[8, 12, 16] = 16
    plausible_batches: float = Field(default=2.0, ge=1)


class ServiceSection(_Section):
    """What a run over the service must be told, as its coordinator sees no data.

    Attributes:
        unit: the consents' privacy unit, "record" or a field; None takes privacy.unit, else record.
        units: units that each member declares to train on, by name; they decide the sampling rate.
        members: names of those that take part; None is everyone who was approved.
        deadline_s: how long a phase waits for members at most.

    """

    unit: str | None = Field(default=None, min_length=1, max_length=200)
    units: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    members: tuple[str, ...] | None = None
    deadline_s: float = Field(default=600.0, gt=0)


class CompareSection(_Section):
    """A comparison of arms, where one is asked for.

    Attributes:
        seeds: how many; 0 is a single simulation.
        arms: which to train; the base is always evaluated.

    """

    seeds: int = Field(default=0, ge=0, le=100)
    arms: tuple[Arm, ...] = ARMS


class RunFile(_Section):
    """A whole run: a simulation, or one over the service, which does not read `data` and `compare`.

    Attributes:
        seed: of everything drawn in a simulation; None draws sampling and noise from the operating
            system, as nodes of the service always do, so that the noise protects.

    """

    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    training: TrainingSection = TrainingSection()
    privacy: PrivacySection = PrivacySection()
    federation: FederationSection = FederationSection()
    compare: CompareSection = CompareSection()
    service: ServiceSection = ServiceSection()
    seed: int | None = Field(default=0, ge=0, lt=2**63)

    @property
    def public_seed(self) -> int:
        """Seed of what is public in any case: first weights, warm-up, drop-outs."""
        return self.seed or 0


def load_run_file(path: Path | None, overrides: dict[str, dict[str, Any]]) -> RunFile:
    """Read RUN.toml and apply command-line options.

    Args:
        path: the file, or None for all defaults; relative paths in it are relative to it.
        overrides: by section, then key; the section "" holds top-level keys.

    Raises:
        RunFileError: unreadable, not TOML, or a key that is unknown or out of its range.

    """
    values = _read(path) if path is not None else {}
    for section, options in overrides.items():
        target = values.setdefault(section, {}) if section else values
        target.update(options)
    try:
        return RunFile.model_validate(values)
    except ValidationError as error:
        raise RunFileError(_refusal(error, path, overrides)) from error


def _refusal(
    error: ValidationError, path: Path | None, overrides: dict[str, dict[str, Any]]
) -> str:
    """Say what is wrong, and whether it stands in the file or was given as an option."""
    fault, place = first_fault(error, "run", RunFile), place_of(error)
    section, key = place[:2] if len(place) > 1 else ("", "".join(place))
    if path is not None and overrides.get(section, {}).get(key) is None:
        return f"{path.name}: {fault}. Correct this key."
    return f"the options: {fault}. Correct this option."


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise RunFileError(
            f"Expected a run file at {path}, got no such file. Check the path."
        ) from error
    except (OSError, ValueError) as error:
        raise RunFileError(
            f"Expected a readable TOML file at {path}, got: {error}. Correct the file."
        ) from error
    data = values.get("data", {})
    for key in ("path", "config"):
        if isinstance(data.get(key), str):
            data[key] = path.parent / data[key]
    if isinstance(data.get("public"), list):
        data["public"] = [path.parent / str(place) for place in data["public"]]
    model = values.get("model", {})
    if isinstance(model.get("base"), str) and (path.parent / model["base"]).is_dir():
        model["base"] = str(path.parent / model["base"])
    return values
