"""The model that a run begins or goes on with, before its optimizer state is loaded."""

from __future__ import annotations

from pathlib import Path

from kiara.checkpoints import Checkpoint, load_model
from kiara.data import Dataset
from kiara.model import GPT
from kiara.training.lora import add_lora
from kiara.training.pretrained import pretrained_model, weights_hash
from kiara.training.run import Run
from kiara.training.snapshot import check_data
from kiara_runtime.errors import UserError


def initial_model(run: Run, dataset: Dataset) -> GPT:
    """Random weights, those of training.init_from, or those of the run's last checkpoint; with adapters if configured.

    A run with adapters reads the frozen weights from training.init_from each time.
    """
    config, last = run.config, run.last
    if last is not None:
        check_data(last.state(), dataset)
    if config.training.init_from is None or (last is not None and config.adapt.rank is None):
        return _random(run, dataset) if last is None else _saved(run, last)
    model = _start(run, dataset, config.training.init_from)
    if config.adapt.rank is not None:
        add_lora(model, config.adapt, config.training.seed)
    return model


def reference(run: Run, dataset: Dataset) -> GPT:
    """The checkpoint that preferences are learned against: the one the run started from."""
    if run.config.training.init_from is None:
        raise UserError("data.format", "preference needs a checkpoint to start from", "name it with --init-from")
    return _start(run, dataset, run.config.training.init_from)


def _start(run: Run, dataset: Dataset, place: str) -> GPT:
    """The checkpoint at `place`; raises UserError if its weights have changed since the run began."""
    run.init_sha256 = weights_hash(Path(place))
    if run.last is not None and run.last.state().get("init_sha256", run.init_sha256) != run.init_sha256:
        problem = "has other weights than when the run began"
        raise UserError("training.init_from", problem, "restore it", value=place)
    return pretrained_model(Path(place), dataset)


def _random(run: Run, dataset: Dataset) -> GPT:
    model = GPT(run.config.model, dataset.tokenizer.vocab_size)
    model.initialise(run.config.training.seed)
    return model


def _saved(run: Run, last: Checkpoint) -> GPT:
    model, _ = load_model(last.folder)
    if model.config != run.config.model:
        raise UserError("model", f"has another shape than {last.folder}", "remove its settings")
    return model
