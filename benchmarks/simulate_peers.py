"""The peers of `benchmarks.simulate`: the same local work in pfl and in Flower's Ray simulation.

Shapes: N nodes, B sequences, T positions, D coordinates of the trainable vector.
"""

import os
import time
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from benchmarks.local_work import Pairs, gradient, new_model
from models.decoder import Decoder
from models.vector import write_vector

RunPeer = Callable[[Pairs, int, Path], None]
"""(pairs to fill, rounds, folder for files) -> runs the peer."""


def run_pfl(pairs: Pairs, rounds: int, folder: Path) -> None:
    """Federated averaging of one local step over the whole batch, in pfl's simulation."""
    from benchmarks import simulate_pfl  # noqa: PLC0415  (pfl is optional)

    simulate_pfl.average(pairs, rounds)


def run_flower(pairs: Pairs, rounds: int, folder: Path) -> None:
    """Broadcast, local gradient and sum over Flower's simulation: one Ray actor of one CPU."""
    os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0")
    from flwr.simulation import run_simulation  # noqa: PLC0415

    path = folder / "work.pt"
    work = pairs.bare.work
    torch.save({"token": work.token_NBT, "target": work.target_NBT}, path)
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        while len(nodes := sorted(grid.get_node_ids())) < work.nodes:
            time.sleep(0.1)
        for _ in range(rounds):
            _flower_round(grid, nodes, work.vector_D, path)
            pairs.round_ended()

    run_simulation(
        server,
        flower_client,
        num_supernodes=work.nodes,
        backend_config={
            "init_args": {"num_cpus": 1, "logging_level": "ERROR", "log_to_driver": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


def _flower_round(grid: Grid, nodes: list[int], vector_D: Tensor, path: Path) -> Tensor:
    record = ArrayRecord({"vector": Array(vector_D.numpy())})
    messages = [
        Message(
            RecordDict({"arrays": record, "config": ConfigRecord({"path": str(path), "node": n})}),
            dst_node_id=node,
            message_type="train",
        )
        for n, node in enumerate(nodes)
    ]
    sum_D = torch.zeros_like(vector_D)
    for reply in grid.send_and_receive(messages):
        sum_D += torch.from_numpy(reply.content.array_records["arrays"]["vector"].numpy())
    return sum_D


flower_client = ClientApp()


@flower_client.train()
def _flower_update(message: Message, context: Context) -> Message:
    config = message.content.config_records["config"]
    model, token_NBT, target_NBT = _flower_state(str(config["path"]))
    vector = message.content.array_records["arrays"]["vector"].numpy()
    write_vector(model, torch.from_numpy(vector))
    node = int(str(config["node"]))
    gradient_D = gradient(model, token_NBT[node], target_NBT[node])
    arrays = ArrayRecord({"vector": Array(gradient_D.numpy())})
    return Message(RecordDict({"arrays": arrays}), reply_to=message)


@lru_cache(maxsize=1)
def _flower_state(path: str) -> tuple[Decoder, Tensor, Tensor]:
    """Model and data, kept in the actor's memory."""
    torch.set_num_threads(1)
    found = torch.load(path)
    return new_model(), found["token"], found["target"]


def peer_name(package: str) -> str:
    """The peer's name and version, as rows name it."""
    if package == "ray":
        return f"Flower {version('flwr')} on Ray {version('ray')}"
    return f"{package} {version(package)}"


PEERS: dict[str, tuple[str, RunPeer]] = {"pfl": ("pfl", run_pfl), "flower": ("ray", run_flower)}
"""By row name: the package that must be there, and how it is run."""
