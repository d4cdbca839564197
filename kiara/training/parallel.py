"""The processes of a run that `torchrun` starts: rank, share of the batch, collectives.

Each process computes its share of a step's rows. PyTorch's DDP averages gradients, or its FSDP2 shards weights,
gradients and optimizer state. Without torchrun there is one process, and none of this is used.
"""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from kiara.console import logger, say_errors_only
from kiara.model import GPT
from kiara.training.preference import Preference
from kiara_runtime.errors import UserError

Parallel = Literal["ddp", "fsdp"]
PATIENCE = timedelta(hours=6)  # timeout of a collective; the first one waits while text is prepared
GRACE = 5.0  # seconds; torchrun polls its processes every 0.1 s


@dataclass(frozen=True)
class World:
    """rank: of this process, from 0. size: how many there are. local_rank: of this process on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, rows: int) -> range:
        """The rows of a step that this process computes; shares differ by one row at most."""
        return range(self.rank * rows // self.size, (self.rank + 1) * rows // self.size)

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, identical in each."""
        if self.size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed)
        return summed.tolist()

    def wait(self) -> None:
        """Wait for all processes."""
        self.total([0.0])


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that torchrun's environment describes, until the block ends.

    Raises UserError if another process ends early.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    world = World(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    if not world.main:  # torchrun ends the others once the first, which prints the reason, has ended
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        say_errors_only()
    dist.init_process_group(timeout=PATIENCE)  # gloo for tensors on the CPU, NCCL for those on GPUs
    try:
        yield world
    except UserError:
        if not world.main:
            time.sleep(GRACE)  # the first process most likely reports the same error
        raise
    except RuntimeError as error:  # gloo has no class of its own for a connection that broke
        logger.debug("process %d", world.rank, exc_info=True)
        first = str(error).splitlines()[0]
        remedy = "see its message, then start all processes again with --resume"
        raise UserError(f"process {world.rank} of {size}", f"another process has ended ({first})", remedy) from None
    finally:
        dist.destroy_process_group()


class Objective(nn.Module):
    """The loss as a module, which is what DDP wraps."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BS: Tensor, targets_BS: Tensor, segments_BS: Tensor | None) -> Tensor:
        return self.model.loss(ids_BS, targets_BS, segments_BS)


def distribute(objective: Objective | Preference, world: World, parallel: Parallel) -> nn.Module:
    """The objective, distributed over all processes; FSDP2 shards its model in place."""
    model = objective.model
    if world.size > 1 and parallel == "fsdp":
        # A block returns views, its keys and values; nothing changes them in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
        mesh = init_device_mesh(model.embed_tokens.weight.device.type, (world.size,))
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model, "loss")  # it gathers the weights, as forward does
        return objective
    return DistributedDataParallel(objective) if world.size > 1 else objective


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor if FSDP2 has sharded it. Every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Move a whole tensor to the device of `parameter`, and shard it the same way."""
    tensor = tensor.to(parameter.device)
    if isinstance(parameter, DTensor) and not isinstance(tensor, DTensor) and tensor.shape == parameter.shape:
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor


def check_batch(rows: int, world: World) -> None:
    """Raise UserError if a step has fewer rows than there are processes."""
    if rows < world.size:
        raise UserError(
            "training.global_batch", f"{rows} sequences for {world.size} processes", "give each at least one"
        )
