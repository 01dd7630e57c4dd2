"""What a node update costs in a simulation, over a bare torch loop of the same local work.

A node update: load the round's parameters, pass the node's 32 sequences of 128 tokens through the
`nano` preset, sum the units' gradients into one flat vector. 8 nodes, one after the other; every
unit is drawn in every round; fp32, one torch thread. Limit: a loop that does this and nothing else.

    arion.local_update  what a node computes without noise: parameters, their digest, gradient sum
    arion.noise_off     a run over the in-process grid without clipping and noise; with masks (ring
                        2^32: the product always masks), ledgers, outboxes and the optimiser
    arion.private       the same run with clipping and noise (ring 2^16)
    homes in memory     both runs again with every file on a RAM disk, so that nobody waits for one
    pfl, flower         the peers; no masks, no noise, no ledger

Seconds are wall time of a round over its nodes, medians; the first round is left out. A round of
the bare loop follows every round in the same process; a ratio to the limit is the median over these
pairs. A ratio to a peer is the quotient of both ratios to the limit.
"""

import json
import logging
import statistics
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from arion.federation import FEDERATION, Budget, Homes, build_homes, share_out
from arion.institutions import find_institutions, read_public
from arion.run_federation import run_federation
from arion.synthetic import write_synthetic
from benchmarks.harness import Row, context, main, paired_ratio
from benchmarks.local_work import PRESET, BareLoop, Pairs, Work, new_model, start_vector
from benchmarks.simulate_peers import PEERS, peer_name
from client.config import load_node_config
from client.data import DataConfig
from client.training import LocalTrainer, UnitRows, unit_rows
from client.training_records import training_records
from coordinator.outcome import RoundOutcome
from models.checkpoint import load_model, model_digest, save_model
from models.tokenizer import Tokenizer, stack_rows
from models.training_settings import OptimiserSettings, Recipe
from models.vector import write_vector
from privacy.dp.accountant import calibrate_noise_multiplier
from privacy.dp.plan import PrivateStep

NODES, UNITS, POSITIONS = 8, 32, 128
RECIPE = Recipe(sequence_length=POSITIONS, sequences_per_unit=1)
N_MIN, COLLUDERS = 6, 1
EPSILON, DELTA = 8.0, 1e-5
LIMIT = "bare torch loop"
MEMORY = Path("/dev/shm")
"""Homes here cost no disk: what durable writes take is the difference."""

_RECORDS_PER_ROW = 4


@dataclass(frozen=True)
class Measured:
    """One system's rounds beside the limit's."""

    name: str
    system: list[float]
    limit: list[float]

    @property
    def ratio(self) -> float:
        """Over the limit: median of the pairs."""
        return paired_ratio(self.system, self.limit)


def run(quick: bool) -> Iterator[Row]:
    """Yield our rows, beside every peer that is installed, then the peers' own."""
    torch.set_num_threads(1)
    rounds = 3 if quick else 6
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), rounds)
        ours = [bench.local_update(), *bench.runs(Path(folder))]
        if MEMORY.is_dir() and not quick:
            with tempfile.TemporaryDirectory(dir=MEMORY) as memory:
                ours += bench.runs(Path(memory), ", homes in memory")
        peers = [bench.peer(name) for name in PEERS if not quick and _installed(name)]
    for found in ours:
        yield from _rows(found, peers, rounds)
    for found in peers:
        yield from _rows(found, [], rounds)


def _installed(name: str) -> bool:
    package, _ = PEERS[name]
    if find_spec(package) is not None:
        return True
    print(f"no rows of {name}: {package} is not installed; see benchmarks/README.md")
    return False


def _rows(found: Measured, peers: list[Measured], rounds: int) -> Iterator[Row]:
    pairs = sorted(s / b for s, b in zip(found.system, found.limit, strict=True))
    packages = ["torch", "flwr", *(PEERS[p.name][0] for p in peers)]
    if found.name in PEERS:
        packages.append(PEERS[found.name][0])
    fields = context(
        sorted(set(packages)),
        threads=torch.get_num_threads(),
        config={
            "preset": PRESET, "nodes": NODES, "sequences": UNITS, "positions": POSITIONS,
            "rounds": rounds - 1,
            "ratio_to_limit_range": [round(pairs[0], 3), round(pairs[-1], 3)],
        },
    )  # fmt: skip
    value, limit = statistics.median(found.system), statistics.median(found.limit)
    for peer in peers or [None]:
        named = better = seconds = None
        if peer is not None:
            named, seconds = peer_name(PEERS[peer.name][0]), statistics.median(peer.system)
            better = peer.ratio / found.ratio
        yield Row(
            f"node update, {found.name}", value, "s", named, seconds, better,
            LIMIT, limit, found.ratio, fields,
        )  # fmt: skip


class Bench:
    """One workload, laid out as shards and a base model for us, as tensors for the others."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self._folder, self._rounds = folder, rounds
        paths = write_synthetic(folder / "text", units_per_institution=80, public_documents=1000)
        tokenizer = Tokenizer.train(read_public([paths.public_dir]), new_model().config.vocab_size)
        save_model(new_model(), tokenizer, folder / "base")
        texts = [
            json.loads(line)["text"]
            for path in sorted(paths.private_dir.rglob("*.jsonl"))
            for line in path.read_text().splitlines()
        ]
        self._write_shards(texts)
        self.homes = self._homes(folder, "noise_off", 0.0)
        self.trainers = [
            LocalTrainer(model, units, RECIPE, chunk_sequences=UNITS, pad_draws=False)
            for model, units in map(self._model_and_units, self.homes.names)
        ]
        stacked = [
            stack_rows([row for (row,) in trainer.units.rows], POSITIONS)
            for trainer in self.trainers
        ]
        token_NBT, target_NBT = (torch.stack(part) for part in zip(*stacked, strict=True))
        assert token_NBT.shape == (NODES, UNITS, POSITIONS)
        assert bool((target_NBT >= 0).all()), "every position counts"
        self.bare = BareLoop(Work(token_NBT, target_NBT, start_vector()))
        self.bare.round()  # warm

    def local_update(self) -> Measured:
        """Time what a node computes in a round without clipping, noise and masks."""
        step, drawn = _step(0.0, self._rounds, 0), np.arange(UNITS)
        payload = self.bare.work.vector_D.numpy().astype("<f4").tobytes()
        pairs = Pairs(self.bare)
        for _ in range(self._rounds):
            total = np.zeros(len(payload) // 4, np.float32)
            for trainer in self.trainers:
                write_vector(trainer.model, torch.from_numpy(np.frombuffer(payload, "<f4").copy()))
                model_digest(trainer.model)
                total += trainer.clipped_sum(drawn, step)
            pairs.round_ended()
        torch.testing.assert_close(torch.from_numpy(total), self.bare.round())
        return Measured("arion.local_update", pairs.system, pairs.limit)

    def runs(self, root: Path, note: str = "") -> list[Measured]:
        """Time both kinds of run, their homes under `root`."""
        chosen = {"noise_off": 0.0, "private": EPSILON}
        return [
            self._run(f"arion.{name}{note}", self._homes(root, name, epsilon))
            for name, epsilon in chosen.items()
        ]

    def _run(self, name: str, homes: Homes) -> Measured:
        """Time whole rounds of a run, from the end of one to the end of the next."""
        pairs = Pairs(self.bare)

        def observe(outcome: RoundOutcome, state: object) -> None:
            assert len(outcome.survivors) == NODES, outcome
            pairs.round_ended()

        run_federation(homes, observe)
        return Measured(name, pairs.system, pairs.limit)

    def peer(self, name: str) -> Measured:
        """Time a peer's rounds."""
        pairs = Pairs(self.bare)
        PEERS[name][1](pairs, self._rounds, self._folder)
        return Measured(name, pairs.system, pairs.limit)

    def _write_shards(self, texts: list[str]) -> None:
        shards = self._folder / "shards"
        shards.mkdir()
        for node in range(NODES):
            rows = []
            for unit in range(UNITS):
                begin = (node * UNITS + unit) * _RECORDS_PER_ROW
                text = " ".join(texts[begin : begin + _RECORDS_PER_ROW])
                rows.append(json.dumps({"text": text}) + "\n")
            (shards / f"node-{node}.jsonl").write_text("".join(rows))

    def _homes(self, root: Path, name: str, epsilon: float) -> Homes:
        length = start_vector().numel()
        settings = {
            "federation": FEDERATION, "run": name, "n_min": N_MIN, "colluders": COLLUDERS,
            "rounds": self._rounds, "step": _step(epsilon, self._rounds, length),
            "recipe": RECIPE, "optimiser": OptimiserSettings(),
            "base_model": (self._folder / "base").resolve(), "runtime": "simulate",
        }  # fmt: skip
        institutions = find_institutions(self._folder / "shards", DataConfig(text_fields=("text",)))
        return build_homes(
            root / name, share_out(institutions, None), settings,
            budget=Budget(epsilon or None, DELTA), vector_length=length, seed=None,
            node_options={"heldout": 0.0, "validation": 0.0},
        )  # fmt: skip

    def _model_and_units(self, name: str) -> tuple[torch.nn.Module, UnitRows]:
        config = load_node_config(self.homes.nodes[name])
        _, tokenizer = load_model(config.base_model)
        return new_model(), unit_rows(training_records(config), tokenizer, RECIPE)


def _step(epsilon: float, rounds: int, length: int) -> PrivateStep:
    """The mechanism: every unit in every round; epsilon 0 is no clipping and no noise."""
    noise = 0.0
    if epsilon:
        noise = calibrate_noise_multiplier(
            epsilon, DELTA, 1.0, rounds, vector_length=length, contributors=NODES
        )
    return PrivateStep(
        clipping_norm=1.0, noise_multiplier=noise, sampling_probability=1.0,
        expected_batch=float(NODES * UNITS), honest_survivors=N_MIN - COLLUDERS, releases=rounds,
        unit="record", ring_bits=16 if epsilon else 32,
    )  # fmt: skip


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    main(run)
