"""The gradient of a step, accumulated over passes and averaged over processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from kiara.config import Config
from kiara.data import Split
from kiara.evaluation import tensors
from kiara.training.parallel import Objective, World, distribute
from kiara.training.preference import Preference


class Gradient:
    """Forward and backward passes. The rows depend only on seed, step and position in the batch, not on the process."""

    def __init__(
        self, objective: Objective | Preference, split: Split, config: Config, world: World,
        autocast: Callable[[], torch.autocast],
    ) -> None:  # fmt: skip
        self._model, self._split, self._world, self._autocast = objective.model, split, world, autocast
        self._config, self._length = config.training, config.sequence_length
        self._objective = distribute(objective, world, self._config.parallel)
        self._call: nn.Module = self._objective

    def compile(self) -> None:
        """Compile the objective at its first pass."""
        self._call = torch.compile(self._objective, dynamic=False)  # pyright: ignore[reportAttributeAccessIssue]

    def add(self, step: int) -> float:
        """Accumulate the gradient of a step's mean loss; returns this process's part of that loss.

        The parts of all processes add up to the mean loss.
        """
        rows, length = self._config.sequences, self._length
        share = self._world.share(rows)
        passes = -(-len(share) // self._config.batch_size)
        counted = self._split.step_targets(self._config.seed, step, rows, length)
        loss, device = 0.0, self._model.cos.device
        for i in range(passes):
            part = range(share.start + i * len(share) // passes, share.start + (i + 1) * len(share) // passes)
            examples = self._split.examples(self._config.seed, step, rows, length, part)
            here = examples.counted
            with self._synchronised(i == passes - 1):
                with self._autocast():
                    mean = self._call(*tensors(examples, device))
                # Processes average their gradients, so each counts its targets `size` times.
                (mean * (here * self._world.size / counted)).backward()
            loss += mean.item() * here / counted
        return loss

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        """Average the gradients over the processes only in the last pass of a step."""
        if isinstance(self._model, FSDPModule):
            self._model.set_requires_gradient_sync(last)
        if isinstance(self._objective, DistributedDataParallel) and not last:
            return self._objective.no_sync()
        return nullcontext()
