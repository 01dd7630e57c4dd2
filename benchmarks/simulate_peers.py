"""The peers of `benchmarks.simulate`: the same local work in pfl and in Flower's Ray simulation.

Shapes: N nodes, B sequences, T positions, D coordinates of the trainable vector.
"""

import os
import time
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import Tensor, nn

from benchmarks.local_work import Pairs, gradient, new_model, summed_loss
from models.decoder import Decoder
from models.vector import write_vector

RunPeer = Callable[[Pairs, int, Path], None]
"""(pairs to fill, rounds, folder for files) -> runs the peer."""


def run_pfl(pairs: Pairs, rounds: int, folder: Path) -> None:
    """Federated averaging of one local step over the whole batch, in pfl's simulation."""
    from pfl.aggregate.simulate import SimulatedBackend  # noqa: PLC0415
    from pfl.algorithm.base import NNAlgorithmParams  # noqa: PLC0415
    from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: PLC0415
    from pfl.callback.base import TrainingProcessCallback  # noqa: PLC0415
    from pfl.data.federated_dataset import FederatedDataset  # noqa: PLC0415
    from pfl.data.pytorch import PyTorchTensorDataset  # noqa: PLC0415
    from pfl.data.sampling import get_user_sampler  # noqa: PLC0415
    from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams  # noqa: PLC0415
    from pfl.metrics import Metrics, Weighted  # noqa: PLC0415
    from pfl.model.pytorch import PyTorchModel  # noqa: PLC0415

    class Module(nn.Module):
        """The decoder with the two methods that pfl asks for."""

        def __init__(self) -> None:
            super().__init__()
            self.decoder = new_model()

        def loss(self, token_BT: Tensor, target_BT: Tensor) -> Tensor:
            return summed_loss(self.decoder, token_BT, target_BT)

        def metrics(self, token_BT: Tensor, target_BT: Tensor) -> dict[str, Any]:
            return {"loss": Weighted(self.loss(token_BT, target_BT).item(), len(token_BT))}

    class Timer(TrainingProcessCallback):  # type: ignore[misc]
        def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Any]:
            pairs.round_ended()
            return False, Metrics()

    work = pairs.bare.work
    users = {
        str(node): PyTorchTensorDataset((token_BT, target_BT), user_id=str(node))
        for node, (token_BT, target_BT) in enumerate(
            zip(work.token_NBT, work.target_NBT, strict=True)
        )
    }
    dataset = FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", [*users]))
    module = Module()
    write_vector(module, work.vector_D)
    trained = [p for p in module.parameters() if p.requires_grad]
    # A rate of one per unit keeps the parameters near their start: rounds of one kind of work.
    model = PyTorchModel(
        module, torch.optim.SGD, torch.optim.SGD(trained, lr=1e-3 / len(work.token_NBT))
    )
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds,  # in the first round only, which is not counted
            train_cohort_size=work.nodes,
            val_cohort_size=0,
        ),
        SimulatedBackend(dataset, dataset),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=1.0, local_batch_size=None),
        NNEvalHyperParams(local_batch_size=None),
        [Timer()],
        send_metrics_to_platform=False,
    )


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
