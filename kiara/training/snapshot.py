"""What a run needs to resume exactly: weights, optimizer state, exact weights, progress."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import optim
from torch.distributed.fsdp import FSDPModule

from kiara.checkpoints import (
    ADAPTER_FILE,
    OPTIMIZER_FILE,
    Adapter,
    Checkpoint,
    prune_checkpoints,
    read_tensors,
    save_checkpoint,
)
from kiara.config import Config
from kiara.data import Dataset
from kiara.model import GPT
from kiara.training.lora import adapter_config, adapter_tensors, adapters, load_adapters, merged
from kiara.training.optim import load_optimizers, optimizer_tensors
from kiara.training.parallel import World, whole
from kiara.training.rounding import Rounding, exact_tensors, load_exact
from kiara.training.run import Run
from kiara_runtime.errors import UserError

Optimizers = dict[str, optim.Optimizer]


def whole_model(model: GPT) -> GPT:
    """An ordinary model on one device: shards of FSDP2 are gathered in a copy on the CPU, adapters merged in another.

    Every process must call this.
    """
    if not isinstance(model, FSDPModule):
        return merged(model)
    gathered = {name: whole(tensor).cpu() for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        copy = GPT(model.config, model.vocab_size)
    copy.load_state_dict(gathered, assign=True)
    copy.make_tables()
    return copy.eval()


def save_snapshot(
    run: Run, dataset: Dataset, model: GPT, optimizers: Optimizers, rounding: Rounding | None, world: World,
    progress: dict[str, Any],
) -> Checkpoint | None:  # fmt: skip
    """Write a checkpoint from the first process. progress: JSON values, including `step` and `epoch` (from 0)."""
    copy = whole_model(model)
    tensors = optimizer_tensors(model, optimizers) | exact_tensors(rounding)
    if not world.main:
        return None
    state = {
        **progress,
        "dataset": os.path.relpath(dataset.folder, run.folder / "checkpoints" / "any"),
        "data_sha256": dataset.sha256,
        "seed": run.config.training.seed,
        **({"init_sha256": run.init_sha256} if run.init_sha256 else {}),
    }
    saved = save_checkpoint(run.folder, copy, dataset, tensors, state, _adapter(model, run.config))
    prune_checkpoints(run.folder, run.config.training.keep_last)
    return saved


def _adapter(model: GPT, config: Config) -> Adapter | None:
    if config.adapt.rank is None:
        return None
    return Adapter(adapter_tensors(model), adapter_config(model, config.adapt, config.training.init_from or ""))


def load_snapshot(saved: Checkpoint, model: GPT, optimizers: Optimizers) -> None:
    """Restore optimizer state and exact weights or adapters; the model has the other weights already."""
    if adapters(model):
        load_adapters(model, read_tensors(saved.folder / ADAPTER_FILE))
    tensors = read_tensors(saved.folder / OPTIMIZER_FILE)
    load_exact(model, tensors)
    load_optimizers(model, optimizers, tensors)


def check_data(state: dict[str, Any], dataset: Dataset) -> None:
    """Raise UserError if the checkpoint was trained on other data."""
    if state["data_sha256"] != dataset.sha256:
        raise UserError(dataset.folder, "differs from the data of the run", "restore it or start a new run")
