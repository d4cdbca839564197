"""Checkpoints on disk: safetensors and JSON, nothing pickled, each folder complete or absent.

    RUN/checkpoints/epoch-0001-step-000400/
        config.json, generation_config.json, model.safetensors, tokenizer.json ...   a Hugging Face folder
        optimizer.safetensors, trainer_state.json                                    what --resume also needs
        adapter/                                              adapters, which model.safetensors has merged, for peft

Configuration and weights use the names of a Hugging Face family (`kiara.families.registry`), so `transformers` opens
the folder as it is; q, k and v, packed in one matrix here, are stored separately.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kiara.checkpoints.json_files import read_json, write_json
from kiara.console import logger
from kiara.data import Dataset
from kiara.families import Family, family_of, read_config, tensor_names, to_ours, to_theirs, write_config
from kiara.files import GENERATION_FILE, STATE_FILE, new_folder
from kiara.model import GPT
from kiara_runtime.errors import UserError
from kiara_runtime.system import hash_file
from kiara_runtime.tokens import Tokenizer

WEIGHTS_FILE, OPTIMIZER_FILE = "model.safetensors", "optimizer.safetensors"
ADAPTER_FILE, ADAPTER_CONFIG = "adapter/adapter_model.safetensors", "adapter/adapter_config.json"
_FOLDER_NAME = re.compile(r"epoch-(\d+)-step-(\d+)\Z")


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint folder; epoch counts from 1, as in its name."""

    folder: Path
    epoch: int
    step: int

    def state(self) -> dict[str, Any]:
        return read_state(self.folder)

    def selection_loss(self) -> float:
        """Validation loss that picks the best checkpoint, in nats per token; infinite if there is none."""
        try:
            state = self.state()
            loss = state.get("selection_loss", state.get("val_loss"))
        except UserError:  # damaged
            return math.inf
        return float(loss) if isinstance(loss, int | float) and math.isfinite(loss) else math.inf


@dataclass(frozen=True)
class Adapter:
    """Adapters to store beside the merged weights, in peft's format. config: its adapter_config.json."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]


def save_checkpoint(
    run: Path, model: GPT, dataset: Dataset, optimizer_state: dict[str, Tensor], state: dict[str, Any],
    adapter: Adapter | None = None,
) -> Checkpoint:  # fmt: skip
    """Write one checkpoint of a run. state: JSON values, including `epoch` (from 0) and `step`."""
    epoch, step = state["epoch"] + 1, state["step"]
    folder = run / "checkpoints" / f"epoch-{epoch:04}-step-{step:06}"
    with new_folder(folder, "checkpoint") as new:
        try:
            save_file(to_hugging_face(model), new / WEIGHTS_FILE, {"format": "pt"})
            save_file(optimizer_state, new / OPTIMIZER_FILE)
            if adapter is not None:
                (new / ADAPTER_FILE).parent.mkdir()
                save_file(adapter.tensors, new / ADAPTER_FILE, {"format": "pt"})
                write_json(new / ADAPTER_CONFIG, adapter.config)
        except SafetensorError as error:  # also raised for a full disk
            raise UserError(folder, f"the weights cannot be written ({error})", "free some space") from None
        dataset.tokenizer.save(new)
        ids = dataset.token_ids.json()
        write_json(new / "config.json", write_config(model.config, model.vocab_size, ids))
        write_json(new / GENERATION_FILE, ids)
        written = sorted(path for path in new.rglob("*") if path.is_file())
        hashes = {path.relative_to(new).as_posix(): hash_file(path) for path in written}
        write_json(new / STATE_FILE, {**state, "sha256": hashes})
    return Checkpoint(folder, epoch, step)


def list_checkpoints(run: Path) -> list[Checkpoint]:
    """The checkpoints of a run, oldest first."""
    named = [(path, _FOLDER_NAME.match(path.name)) for path in (run / "checkpoints").glob("epoch-*")]
    found = [Checkpoint(path, int(name[1]), int(name[2])) for path, name in named if name]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def best_checkpoint(checkpoints: list[Checkpoint]) -> Checkpoint:
    """The checkpoint with the lowest selection loss, the latest one of a tie."""
    return min(reversed(checkpoints), key=Checkpoint.selection_loss)


def prune_checkpoints(run: Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` and the best."""
    found = list_checkpoints(run)
    best = best_checkpoint(found)
    for checkpoint in found[:-keep_last]:
        if checkpoint != best:  # hidden first: none is ever visible half deleted
            shutil.rmtree(checkpoint.folder.rename(checkpoint.folder.with_name(f".{checkpoint.folder.name}")))


def first_whole(checkpoints: Iterable[Checkpoint]) -> Checkpoint | None:
    """The first undamaged checkpoint; None if there are no checkpoints. Logs a warning for each damaged one before it.

    Raises UserError if all of them are damaged.
    """
    fault: UserError | None = None
    for checkpoint in checkpoints:
        try:
            read_state(checkpoint.folder)
            check_files(checkpoint.folder)
        except UserError as error:
            fault = fault or error
            logger.warning("%s: skipped (%s)", checkpoint.folder, error)
            continue
        return checkpoint
    if fault is not None:
        raise UserError(fault.field, fault.problem, f"{fault.remedy}; the run has no undamaged checkpoint")
    return None


def trained_checkpoint(path: Path) -> Checkpoint:
    """The newest undamaged checkpoint of the run at `path`, or `path` itself, with the state needed to continue."""
    found = first_whole(reversed(list_checkpoints(path)))
    if found is None and (path / OPTIMIZER_FILE).is_file():
        state = read_state(path)
        found = Checkpoint(path.resolve(), int(state.get("epoch", 0)) + 1, int(state["step"]))
    if found is None:
        raise UserError(path, "has no checkpoint that training can continue", "name a run or one of its checkpoints")
    return found


def find_checkpoint(path: Path) -> Path:
    """A checkpoint folder: `path` itself, or the best undamaged checkpoint of the run at `path`."""
    if not path.exists():
        raise UserError(path, "there is no such folder", "name a run or a checkpoint")
    if (path / WEIGHTS_FILE).is_file():
        return path
    if found := first_whole(sorted(list_checkpoints(path), key=lambda one: (one.selection_loss(), -one.step))):
        return found.folder
    if (path / "kiara.json").is_file():
        raise UserError(path, "is a bundle, which kiara-run runs", "name the run or checkpoint it was made from")
    raise UserError(path, "is neither a run with checkpoints nor a checkpoint", "name one that `kiara train` wrote")


def load_model(folder: Path) -> tuple[GPT, Tokenizer]:
    """The model, in float32 and eval mode, and its tokenizer.

    Also reads a Hugging Face folder without `trainer_state.json`, if its tensors have the expected names.
    """
    check_files(folder)
    values = read_json(folder / "config.json")
    try:
        config, vocab_size = read_config(values)
    except UserError as error:
        raise error.inside(folder, "/") from None
    tokenizer = Tokenizer.load(folder)
    with torch.device("meta"):
        model = GPT(config, vocab_size)
    if tokenizer.vocab_size > model.vocab_size:  # a smaller one is usual: embeddings are padded
        raise UserError(
            folder,
            f"config.json says vocab_size {model.vocab_size}, the tokenizer has {tokenizer.vocab_size}",
            "its files do not belong together, copy the whole folder again",
        )
    tensors = read_tensors(folder / WEIGHTS_FILE)
    try:
        state = _from_hugging_face(model, family_of(values), tensors)
    except UserError as error:
        raise error.inside(folder, "/") from None
    model.load_state_dict(state, assign=True)
    model.make_tables()
    return model.eval(), tokenizer


def to_hugging_face(model: GPT) -> dict[str, Tensor]:
    """The weights, with the tensor names of the family that `write_config` chooses; most share the model's memory."""
    family = family_of(write_config(model.config, model.vocab_size, {}))
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        tensors.update(to_theirs(family, model.config, name, tensor))
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _from_hugging_face(model: GPT, family: Family, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}  # all copies, so that nothing keeps the file mapped
    tensors = {family.aliases.get(name, name): tensor for name, tensor in tensors.items()}
    for name, like in model.state_dict().items():
        names = list(tensor_names(family, model.config, name))
        missing = [part for part in names if part not in tensors]
        if missing:
            raise UserError(WEIGHTS_FILE, f"the weight {missing[0]} is missing", "copy the whole folder again")
        state[name] = to_ours(family, model.config, name, [tensors[part] for part in names])
        if state[name].shape != like.shape:
            raise UserError(
                WEIGHTS_FILE,
                f"{names[0]} gives shape {list(state[name].shape)}, config.json needs {list(like.shape)}",
                "use both from the same model",
            )
        check_finite(f"{WEIGHTS_FILE}: {names[0]}", state[name])
    return state


def check_finite(name: str, values: Tensor) -> None:
    """Raise UserError if any weight is NaN or infinite."""
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise UserError(name, f"{bad:,} of its {values.numel():,} weights are NaN or infinite", "use another file")


def check_files(folder: Path) -> None:
    """Compare every file of a checkpoint with the hash that was recorded when it was written."""
    if not (folder / STATE_FILE).is_file():
        return
    recorded = read_json(folder / STATE_FILE).get("sha256", {})
    for name, digest in recorded.items() if isinstance(recorded, dict) else ():
        path = folder / Path(name).name
        if name in (ADAPTER_FILE, ADAPTER_CONFIG):
            path = folder / name
        if not path.is_file():
            raise UserError(path, "there is no such file", "name the run, or another of its checkpoints")
        if hash_file(path) != digest:
            raise UserError(
                path,
                "damaged, its SHA-256 differs from the recorded one",
                "name the run, or another of its checkpoints",
            )


def read_state(folder: Path) -> dict[str, Any]:
    """trainer_state.json of a checkpoint; raises UserError if a provenance field is missing."""
    state = read_json(folder / STATE_FILE)
    for name in ("step", "seed", "data_sha256"):
        if name not in state:
            raise UserError(folder / STATE_FILE, f"the field {name} is missing", "choose another checkpoint")
    return state


def trained_on(folder: Path, option: str | None = None) -> Dataset:
    """The prepared folder that a checkpoint was trained on; raises UserError if its text has changed since.

    option: the command's option for other text, which the error suggests.
    """
    instead = f"give other text with {option}" if option else "start a new run"
    state = read_state(folder)
    if state.get("dataset") is None:
        raise UserError(folder, "is imported, so it has no text of its own", instead)
    data = (folder / str(state["dataset"])).resolve()
    if not data.is_dir():
        raise UserError(folder, f"its data folder {data} is missing", f"restore it, or {instead}")
    dataset = Dataset.open(data)
    if dataset.sha256 != state["data_sha256"]:
        raise UserError(data, "was prepared again from other text", f"restore it, or {instead}")
    return dataset


def read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(path, "there is no such file", "copy the whole folder again, or name another")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(path, f"damaged ({error})", "copy it again, or name another checkpoint") from None
