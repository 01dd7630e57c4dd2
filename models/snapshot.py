"""Where a stopped training run goes on from: one file with weights, moments, generator and step.

The file holds whole tensors, whatever the number of processes: a run may go on with another one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.durable import put
from models.parallel import ALONE, World, assign, whole

_MOMENTS = ("exp_avg", "exp_avg_sq")


class SnapshotError(ValueError):
    """A snapshot that this run cannot go on from."""


@dataclass(frozen=True)
class Trained:
    """What a training run changes.

    Attributes:
        weights: the optimiser's parameters by name, in its order.
        optimiser: AdamW. generator: draws the batches.

    """

    weights: Mapping[str, Tensor]
    optimiser: torch.optim.AdamW
    generator: torch.Generator


@dataclass(frozen=True)
class Snapshot:
    """The snapshot file of one training run.

    Attributes:
        path: a safetensors file; appears and changes as a whole.
        every: steps from one snapshot to the next, >= 1.
        run: what the run was started with, as text; another run's snapshot is refused.
        world: the processes that hold the model; every call is made by all of them.

    """

    path: Path
    every: int
    run: str
    world: World = ALONE

    def restore(self, run: Trained) -> int:
        """Set a run to where it stopped; returns its finished steps, 0 without a file.

        Raises:
            SnapshotError: a damaged file, or another run's.

        """
        if not self.path.exists():
            return 0
        try:
            with safe_open(self.path, framework="pt") as file:
                facts = file.metadata() or {}
                if facts.get("run") != self.run:
                    raise SnapshotError(
                        f"Expected a snapshot of a run with these settings and this text at "
                        f"{self.path}, got another run's. Give the settings it began with, or "
                        "delete it to begin anew."
                    )
                _fill(run, file, int(facts["step"]))
                return int(facts["step"])
        except SafetensorError as error:
            raise SnapshotError(
                f"Expected a whole snapshot, got a damaged {self.path} ({error}). Delete it to "
                "begin anew."
            ) from error

    def save(self, step: int, run: Trained) -> None:
        """Replace the file by the state after `step` steps, where a snapshot is due."""
        if step % self.every:
            return
        tensors = {"generator": run.generator.get_state()}
        for name, weight in run.weights.items():
            state = run.optimiser.state[weight]
            for kind, value in (("weight", weight), *((key, state[key]) for key in _MOMENTS)):
                gathered = whole(value.detach())
                if self.world.is_first:
                    tensors[f"{kind}/{name}"] = gathered.cpu()
        if self.world.is_first:
            part = self.path.with_name(self.path.name + ".part")
            save_file(tensors, part, metadata={"step": str(step), "run": self.run})
            put(part, self.path)
        self.world.from_first()


def _fill(run: Trained, file: Any, step: int) -> None:
    states: dict[int, dict[str, Tensor]] = {}
    for place, (name, weight) in enumerate(run.weights.items()):
        assign(weight, file.get_tensor(f"weight/{name}"))
        states[place] = {"step": torch.tensor(float(step))}
        for key in _MOMENTS:
            states[place][key] = torch.zeros_like(weight, requires_grad=False)
            assign(states[place][key], file.get_tensor(f"{key}/{name}"))
    groups = run.optimiser.state_dict()["param_groups"]
    run.optimiser.load_state_dict({"state": states, "param_groups": groups})
    run.generator.set_state(file.get_tensor("generator"))
