"""The local work of `benchmarks.simulate` in pfl's simulation; read only where pfl is installed.

Shapes: B sequences, T positions.
"""

from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from benchmarks.local_work import Pairs, Work, new_model, summed_loss
from models.vector import write_vector


class _Module(nn.Module):
    """The decoder with the two methods that pfl asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = new_model()

    def loss(self, token_BT: Tensor, target_BT: Tensor) -> Tensor:
        return summed_loss(self.decoder, token_BT, target_BT)

    def metrics(self, token_BT: Tensor, target_BT: Tensor) -> dict[str, Any]:
        return {"loss": Weighted(self.loss(token_BT, target_BT).item(), len(token_BT))}


class _Timer(TrainingProcessCallback):  # type: ignore[misc]
    """Tells the pairs when a round has ended."""

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Any]:
        self._pairs.round_ended()
        return False, Metrics()


def average(pairs: Pairs, rounds: int) -> None:
    """Federated averaging of one local step over the whole batch."""
    work = pairs.bare.work
    dataset = _dataset(work)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds,  # in the first round only, which is not counted
            train_cohort_size=work.nodes,
            val_cohort_size=0,
        ),
        SimulatedBackend(dataset, dataset),
        _model(work),
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=1.0, local_batch_size=None),
        NNEvalHyperParams(local_batch_size=None),
        [_Timer(pairs)],
        send_metrics_to_platform=False,
    )


def _dataset(work: Work) -> FederatedDataset:
    users = {
        str(node): PyTorchTensorDataset((token_BT, target_BT), user_id=str(node))
        for node, (token_BT, target_BT) in enumerate(
            zip(work.token_NBT, work.target_NBT, strict=True)
        )
    }
    return FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", [*users]))


def _model(work: Work) -> PyTorchModel:
    module = _Module()
    write_vector(module, work.vector_D)
    trained = [p for p in module.parameters() if p.requires_grad]
    # A rate of one per unit keeps the parameters near their start: rounds of one kind of work.
    rate = 1e-3 / len(work.token_NBT)
    return PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(trained, lr=rate))
