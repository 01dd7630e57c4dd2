"""Several processes train one model: torchrun starts them, FSDP2 shards the weights among them.

Each process (rank) keeps 1/W of every weight. A block's weights are gathered when its turn comes
and dropped after it. The weight that an operation sees is not the parameter at rest, therefore
`shard` returns the names under which private training finds it.

Source: Zhao et al. 2023, "PyTorch FSDP" (arXiv 2304.11277); Rajbhandari et al. 2020, ZeRO
(arXiv 1910.02054), stage 3.

Shapes: D coordinates of the trainable vector.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor

from models.checkpoint import model_digest
from models.decoder import Decoder
from models.language_model import SequenceLoss

_CPU = torch.device("cpu")
_PATIENCE = timedelta(days=365)
_ERROR_KEY = "arion-error"
_GRACE_S = 2.0


class ParallelError(ValueError):
    """The processes of a run cannot go on together."""


class StoppedElsewhereError(ParallelError):
    """Another process of the run failed, and says why itself."""


@dataclass(frozen=True)
class World:
    """The processes of a run, and this one's place among them.

    Attributes:
        rank: this process, 0 <= rank < size; rank 0 speaks for all.
        size: W, the number of processes.
        device: where this process computes.
        mesh: all processes in a row; None where there is one.

    """

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU
    mesh: DeviceMesh | None = None
    _patient: "distributed.ProcessGroup | None" = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def from_first(self, data: bytes = b"") -> bytes:
        """Return rank 0's bytes at every rank, however long rank 0 takes to come to it.

        The one call without a time limit: rank 0 may work, or wait for its next round, for hours.
        A rank 0 that dies ends the wait.
        """
        if self.size == 1:
            return data
        length = torch.tensor([len(data)])
        distributed.broadcast(length, 0, group=self._patient)
        payload = torch.zeros(int(length), dtype=torch.uint8)
        if self.is_first:
            payload = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[: len(data)]
        distributed.broadcast(payload, 0, group=self._patient)
        return payload.numpy().tobytes()

    def agrees(self, data: bytes) -> bool:
        """Whether every rank passes the same bytes; the same answer at every rank."""
        return bool(self.mean(torch.tensor(float(self.from_first(data) == data))) == 1.0)

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over the processes, the same at every rank."""
        if self.size == 1:
            return value
        total = value.clone()
        distributed.all_reduce(total)
        return total / self.size


ALONE = World()


@contextmanager
def processes(timeout_s: float = 600.0) -> Iterator[World]:
    """Join the processes that torchrun started; without torchrun, this process is alone.

    Each has a GPU to itself where torch sees one.

    Args:
        timeout_s: a collective that takes longer fails, so that nobody waits for the dead.

    Raises:
        ParallelError: a process fell silent. StoppedElsewhereError: another process failed first;
            it is the one that should tell the user.

    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(device=_device())
        return
    limit = timedelta(seconds=timeout_s)
    store, rank, size = next(rendezvous("env://", timeout=limit))
    device = _device()
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("arion-groups", store),
        rank=rank,
        world_size=size,
        timeout=limit,
    )
    try:
        mesh = init_device_mesh(device.type, (size,))
        patient = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        yield World(rank, size, device, mesh, patient)
    except Exception as error:
        raise _told_once(error, store, rank, size) from error
    finally:
        distributed.destroy_process_group()


def shard(model: Decoder, world: World, compute: torch.dtype | None = None) -> Mapping[int, str]:
    """Keep 1/W of every weight at each rank, in place; `model.loss` and `model(...)` gather them.

    Every rank calls this with the same weights, and from then on takes part in every pass of every
    other: a pass is a collective.

    Args:
        compute: precision of the gathered weights and of the passes; the shards keep their own,
            and gradients are summed in fp32. None: the shards' own.

    Returns:
        Names of the gathered weights by `id`, kept up to date by every forward pass.

    Raises:
        ParallelError: the ranks hold different weights.

    """
    assert world.mesh is not None, "one process has nothing to shard"
    # FSDP takes rank r's shard from rank r's own copy: different copies would make a chimera.
    if not world.agrees(model_digest(model).encode()):
        raise ParallelError(
            "Expected the same weights in every process, got different ones. Load one model "
            "folder, or draw the first weights from one seed."
        )
    model.to(world.device)
    names: dict[int, str] = {}
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    for place, block in enumerate(model.blocks):
        fully_shard(block, mesh=world.mesh, reshard_after_forward=True, mp_policy=policy)
        # Runs after FSDP's own hook, which has gathered the block's weights by then.
        block.register_forward_pre_hook(partial(_note_names, names, f"blocks.{place}."))
    fully_shard(model, mesh=world.mesh, reshard_after_forward=True, mp_policy=policy)
    loss = model.loss

    def noted_loss(*args: Any, **options: Any) -> SequenceLoss:
        names.clear()
        _note_names(names, "", model)
        return loss(*args, **options)

    model.loss = noted_loss  # type: ignore[method-assign]
    register_fsdp_forward_method(model, "loss")
    return names


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor at every rank (a collective); any other is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def assign(place: Tensor, value: Tensor) -> None:
    """Copy a whole tensor, the same at every rank, into a tensor that may be sharded."""
    if isinstance(place, DTensor):
        value = distribute_tensor(
            value.to(place.device), place.device_mesh, place.placements, src_data_rank=None
        )
    place.copy_(value)


def unsharded(model: Decoder) -> Decoder:
    """Return a copy with whole weights in main memory (a collective: every rank gets one)."""
    copy = Decoder(model.config)
    with torch.no_grad():
        for own, weight in zip(copy.parameters(), model.parameters(), strict=True):
            own.copy_(whole(weight))
    return copy


def _note_names(names: dict[int, str], prefix: str, module: nn.Module, *_: object) -> None:
    names.update((id(weight), prefix + name) for name, weight in module.named_parameters())


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _told_once(error: Exception, store: Store, rank: int, size: int) -> Exception:
    """Let the first process that fails speak, and silence those that only lost it."""
    lost = isinstance(error, RuntimeError) and "gloo" in str(error)
    lost = lost or isinstance(error, distributed.DistError)
    if lost:
        time.sleep(_GRACE_S)  # whoever failed by itself comes first
    try:
        mine = f"{rank}: {error}"
        first = store.compare_set(_ERROR_KEY, "", mine).decode()
    except RuntimeError:  # the store's host is gone
        first = mine
    if first != mine:
        return StoppedElsewhereError(f"Process {first}")
    if not lost:
        return error
    return ParallelError(
        f"Expected all {size} processes to go on, got no answer from one: it was killed (out of "
        "memory?), hangs, or left. See its own output, then start again."
    )
