"""The peer of `benchmarks.secagg`: a round of Flower's own SecAgg+, node and server timed apart.

The four stages of `SecAggPlusWorkflow` run at the server, `secaggplus_mod` at the nodes; between
them lies a grid that hands over objects, so that no message is serialised. Not counted: what the
strategy does with the aggregate, and the model on its way to the nodes. Every node masks with every
other.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.client.mod.secure_aggregation import secaggplus_mod
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Parameters,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.compat.common.recorddict_compat import fitres_to_recorddict
from flwr.server.client_manager import SimpleClientManager
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState
from flwr.supercore.differential_privacy import add_gaussian_noise_inplace
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

Vector = NDArray[np.float32]

EXAMPLES, MAX_WEIGHT = 100, 1000.0
MEAN_ERROR = 2e-4
"""Of the mean update: Flower's 22 bits over [-8, 8], of values weighed by EXAMPLES / MAX_WEIGHT."""


@dataclass
class FlowerRound:
    """One round.

    Attributes:
        updates: one vector per node, fp32 [d].
        threshold: shares that recover a secret.
        dropped: nodes that leave after the shares are dealt, the last ones.
        noise_std: of the noise that Flower's local differential privacy adds; 0 for none.
        node_s: CPU seconds of each node that stayed.
        server_s: CPU seconds of the server, all stages.
        unmask_s: of its last stage alone: secrets from shares, masks off, the mean.
        upload_bytes: what one node sends.
        mean: the server's aggregate.

    """

    updates: list[Vector]
    threshold: int
    dropped: int
    noise_std: float = 0.0
    node_s: list[float] = field(default_factory=list)
    server_s: float = 0.0
    unmask_s: float = 0.0
    upload_bytes: int = 0
    mean: NDArray[np.float64] | None = None

    def run(self) -> None:
        """Run the round and check its result."""
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
        nodes = len(self.updates)
        grid, strategy, state = _Grid(self), _Strategy(nodes), WorkflowState()
        workflow = SecAggPlusWorkflow(nodes, self.threshold, max_weight=MAX_WEIGHT)
        context = _server_context(strategy)
        for stage in (
            workflow.setup_stage,
            workflow.share_keys_stage,
            workflow.collect_masked_vectors_stage,
            workflow.unmask_stage,
        ):
            begin, elsewhere = time.process_time(), grid.seconds
            plain: Any = grid
            assert stage(plain, context, state), "Flower's workflow halted"
            self.unmask_s = time.process_time() - begin - (grid.seconds - elsewhere)
            self.server_s += self.unmask_s
        staying = nodes - self.dropped
        self.node_s = [node.seconds for node in grid.nodes[:staying]]
        self.upload_bytes = grid.nodes[0].sent_bytes
        assert strategy.result is not None, "the last stage hands over an aggregate"
        self.mean = parameters_to_ndarrays(strategy.result)[0]
        if not self.noise_std:
            true = np.mean(self.updates[:staying], axis=0, dtype=np.float64)
            assert np.abs(self.mean - true).max() < MEAN_ERROR, "Flower's mean is not the mean"


class _Node:
    """A node's module: its state, what it computed with, what it sent."""

    def __init__(self, node_id: int, update: Vector, noise_std: float) -> None:
        self.seconds, self.sent_bytes = 0.0, 0
        self._update, self._noise_std = update, noise_std
        self._context = Context(node_id, node_id, {}, RecordDict(), {})

    def answer(self, message: Message) -> Message:
        begin = time.process_time()
        reply = secaggplus_mod(message, self._context, self._trained)
        self.seconds += time.process_time() - begin
        for value in reply.content.config_records[RECORD_KEY_CONFIGS].values():
            self.sent_bytes += sum(len(v) for v in _bytes_in(value))
        return reply

    def _trained(self, message: Message, _: Context) -> Message:
        """The node's training, which is not counted; its noise is."""
        begin = time.process_time()
        update = self._update.copy()
        self.seconds -= time.process_time() - begin
        if self._noise_std:
            add_gaussian_noise_inplace([update], self._noise_std)
        begin = time.process_time()
        result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([update]), EXAMPLES, {})
        reply = Message(fitres_to_recorddict(result, keep_input=False), reply_to=message)
        self.seconds -= time.process_time() - begin
        return reply


class _Grid:
    """Hands messages to nodes in this process."""

    def __init__(self, job: FlowerRound) -> None:
        self.nodes = [
            _Node(place, update, job.noise_std) for place, update in enumerate(job.updates, start=1)
        ]
        self.seconds = 0.0
        self._staying = len(job.updates) - job.dropped

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        begin = time.process_time()
        replies = [self._answer(message) for message in messages]
        self.seconds += time.process_time() - begin
        return replies

    def _answer(self, message: Message) -> Message:
        place = message.metadata.dst_node_id
        stage = message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE]
        if stage == Stage.COLLECT_MASKED_VECTORS and place > self._staying:
            return Message(Error(0, "left"), reply_to=message)
        # A node gets a copy, as over a wire: the workflow sends one object to all.
        configs = ConfigRecord(dict(message.content.config_records[RECORD_KEY_CONFIGS]))
        message.content = RecordDict({RECORD_KEY_CONFIGS: configs})
        return self.nodes[place - 1].answer(message)


class _Strategy:
    """Samples all nodes, and keeps the aggregate as the workflow hands it over."""

    def __init__(self, nodes: int) -> None:
        self.result: Parameters | None = None
        self._proxies = [_Proxy(place) for place in range(1, nodes + 1)]

    def configure_fit(self, *_: Any) -> list[Any]:
        return [(proxy, FitIns(Parameters([], ""), {})) for proxy in self._proxies]

    def aggregate_fit(self, _: int, results: list[Any], __: Any) -> tuple[None, dict[str, Any]]:
        self.result = results[0][1].parameters
        return None, {}


@dataclass(frozen=True)
class _Proxy:
    node_id: int


def _server_context(strategy: _Strategy) -> LegacyContext:
    state = RecordDict(
        {
            MAIN_CONFIGS_RECORD: ConfigRecord({WorkflowKey.CURRENT_ROUND: 1}),
            MAIN_PARAMS_RECORD: ArrayRecord(),
        }
    )
    plain: Any = strategy
    return LegacyContext(
        Context(0, 0, {}, state, {}), strategy=plain, client_manager=SimpleClientManager()
    )


def _bytes_in(value: Any) -> list[bytes]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, bytes)]
