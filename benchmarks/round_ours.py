"""Our side of `benchmarks.round`: a service, its nodes and the run's driver, each a process.

    python -m benchmarks.round_ours node HOME           a node whose training is a constant
    python -m benchmarks.round_ours drive HOME RUN      the driver; says when each round ended

Nothing of the product is left out or altered but the training itself. Nodes and driver compute in
one thread each, for they share a machine's cores.
"""

import json
import logging
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import client.app
from arion.federation import Budget, Homes, build_homes, share_out
from arion.institutions import find_institutions
from arion.memory import keep_freed_memory
from arion.runs import carry_on
from arion.toml_file import write_toml
from benchmarks.transport import Party
from benchmarks.transport_receivers import peak_mb, say
from client.agent import Agent
from client.config import CONSENT_FILE, NODE_FILE
from client.data import DataConfig
from client.doctor import RUNTIME
from client.membership import collect, join
from client.training import LocalTrainer
from coordinator.outcome import RoundOutcome
from coordinator.service.home import ServiceHome, ServiceSettings
from coordinator.settings import load_settings, save_settings
from coordinator.shared import RUNS_FOLDER
from models.checkpoint import save_model
from models.config import ModelConfig
from models.decoder import Decoder
from models.recipe import prepare
from models.tokenizer import Tokenizer
from models.training_settings import OptimiserSettings, Recipe
from models.vector import vector_length
from privacy.dp.accountant import calibrate_noise_multiplier
from privacy.dp.plan import PrivateStep

FEDERATION, RUN = "benchmark", "rounds"
UNITS, COLLUDERS = 16, 1
VOCABULARY = 300
EPSILON, DELTA = 8.0, 1e-5
RECIPE = Recipe(sequence_length=16, sequences_per_unit=1)
SIZES = {
    4: {"hidden_size": 96, "layers": 4, "expert_hidden_size": 192},
    100: {"hidden_size": 512, "layers": 6, "expert_hidden_size": 560},
}
"""Models whose weights are about so many MB in fp32."""


class OurFederation:
    """A service and its nodes on loopback.

    Args:
        folder: of everything.
        megabytes: of an update, one of `SIZES`.
        nodes: how many.
        rounds: of the run.
        proxy: URL of an HTTP CONNECT proxy that the nodes dial through; "" dials directly.

    """

    def __init__(
        self, folder: Path, megabytes: int, nodes: int, rounds: int, *, proxy: str = ""
    ) -> None:
        self._open = ExitStack()
        self._service_home = folder / "service"
        settings = ServiceSettings(
            federation=FEDERATION, hosts=("localhost",), port=0, enrolment_port=0
        )
        home = ServiceHome.create(self._service_home, settings)
        self._service = Party("receivers", "serve", self._service_home)
        ports = (int(self._service.first[0]), int(self._service.first[1]))
        homes = build(folder, SIZES[megabytes], nodes, rounds)
        enrol(home, homes.nodes, ports)
        home.close()
        for path in (each / NODE_FILE for each in homes.nodes.values()):
            write_toml(path, {**tomllib.loads(path.read_text()), "proxy": proxy})
        place = self._service_home / RUNS_FOLDER / RUN
        place.mkdir(parents=True)
        new = {"coordinator": Path("../.."), "runtime": RUNTIME}
        save_settings(place, load_settings(homes.coordinator).model_copy(update=new))
        command = [sys.executable, "-m", "benchmarks.round_ours"]
        self._drive = [*command, "drive", str(self._service_home), RUN]
        self._nodes = [
            subprocess.Popen([*command, "node", str(node)], stderr=subprocess.DEVNULL)
            for node in homes.nodes.values()
        ]

    def rounds(self) -> tuple[list[float], dict[str, float]]:
        """Drive the run; return when rounds ended, and the largest memory of each process, MB."""
        try:
            done = subprocess.run(self._drive, stdout=subprocess.PIPE, text=True, check=True)
        finally:
            for node in self._nodes:
                node.terminate()
                node.wait(60)
        *ends, last = done.stdout.splitlines()
        service = float(self._service.close()[0])
        return [float(end) for end in ends], {"driver": float(last), "service": service}


def build(
    folder: Path,
    size: Mapping[str, int],
    nodes: int,
    rounds: int,
    *,
    recipe: Recipe = RECIPE,
    **node_options: float,
) -> Homes:
    """Make a base model and nodes' homes, with consents to one run of so many rounds.

    Args:
        folder: of everything; the model is in its "base".
        size: of the model, as in `SIZES`.
        nodes: how many.
        rounds: of the run.
        recipe: of the training.
        node_options: more keys of node.toml.

    """
    data = folder / "data"
    data.mkdir()
    texts = [f"record {number} of the benchmark" for number in range(UNITS)]
    for node in range(nodes):
        lines = [json.dumps({"text": f"{text} at {node}"}) + "\n" for text in texts]
        (data / f"node-{node}.jsonl").write_text("".join(lines))
    tokenizer = Tokenizer.train(texts, VOCABULARY)  # it may find fewer than that
    model = Decoder(_config(size), torch.Generator().manual_seed(0))
    save_model(model, tokenizer, folder / "base")
    prepare(model, recipe)
    length = vector_length(model)
    settings = {
        "federation": FEDERATION, "run": RUN, "n_min": nodes, "colluders": COLLUDERS,
        "rounds": rounds, "step": _step(rounds, length, nodes), "recipe": recipe,
        "optimiser": OptimiserSettings(), "base_model": folder / "base", "runtime": "simulate",
        "deadline_s": 600.0,
    }  # fmt: skip
    found = find_institutions(data, DataConfig(text_fields=("text",)))
    return build_homes(
        folder / "federation", share_out(found, None), settings, budget=Budget(EPSILON, DELTA),
        vector_length=length, seed=None,
        node_options={"heldout": 0.0, "validation": 0.0, **node_options},
    )  # fmt: skip


def _config(size: Mapping[str, int]) -> ModelConfig:
    usual = {
        "vocab_size": VOCABULARY, "heads": 4, "kv_heads": 2, "experts": 4, "experts_per_token": 2,
        "head_dim": size["hidden_size"] // 4, "max_positions": 256,
    }  # fmt: skip
    return ModelConfig(**{**usual, **size})


def parameters_of(megabytes: int) -> int:
    """How many parameters an update of this size has."""
    with torch.device("meta"):
        return sum(p.numel() for p in Decoder(_config(SIZES[megabytes])).parameters())


def _step(rounds: int, length: int, nodes: int) -> PrivateStep:
    noise = calibrate_noise_multiplier(
        EPSILON, DELTA, 1.0, rounds, vector_length=length, contributors=nodes
    )
    return PrivateStep(
        clipping_norm=1.0, noise_multiplier=noise, sampling_probability=1.0,
        expected_batch=float(nodes * UNITS), honest_survivors=nodes - COLLUDERS, releases=rounds,
        unit="record",
    )  # fmt: skip


def enrol(
    service: ServiceHome, nodes: Mapping[str, Path], ports: tuple[int, int], **clauses: Any
) -> None:
    """Have nodes agree to a service's runs, and join it where it listens.

    Args:
        service: the coordinator's home.
        nodes: homes by name.
        ports: of the exchange and of enrolment.
        clauses: of every consent, beside those that name the service.

    """
    pinned = {"runtimes": [RUNTIME], "coordinator_key": service.key.public_key.hex()}
    for name, home in nodes.items():
        path = home / CONSENT_FILE
        write_toml(path, tomllib.loads(path.read_text()) | pinned | clauses)
        join(home, "localhost", ports, str(service.registry.invite(name)))
        service.registry.approve(name)
        collect(home, 5)


def node(home: Path) -> None:
    """Serve until terminated; training takes no time."""
    constant: list[NDArray[np.float32]] = []

    def clipped_sum(self: LocalTrainer, *_: object) -> NDArray[np.float32]:
        if not constant:
            constant.append(np.full(vector_length(self.model), 1e-5, np.float32))
        return constant[0]

    LocalTrainer.clipped_sum = clipped_sum  # type: ignore[method-assign,assignment]
    torch.set_num_threads(1)

    def answer(*question: str | bytes) -> client.app.Question:
        action, *rest = question
        return client.app.answer(home, RUNTIME, str(action), tuple(rest))  # type: ignore[arg-type]

    Agent(home, answer).run()


def drive(service: Path, run: str) -> None:
    """Drive the run; say when each round ended, and at the end how much memory it took."""
    torch.set_num_threads(1)

    def observe(outcome: RoundOutcome, _: object) -> None:
        assert not outcome.code, outcome
        say(time.monotonic())

    with closing(ServiceHome.open(service)) as home:
        carry_on(home, run, observe)
    say(peak_mb())


def main(arguments: Sequence[str]) -> None:
    """One of both processes."""
    keep_freed_memory()  # as every command does
    logging.disable(logging.WARNING)
    role, place, *rest = arguments
    {"node": node, "drive": drive}[role](Path(place), *rest)


if __name__ == "__main__":
    main(sys.argv[1:])
