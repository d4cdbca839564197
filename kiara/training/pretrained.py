"""Training that starts from a checkpoint: its shape, tokenizer and weights, and the settings that suit it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from kiara.checkpoints import WEIGHTS_FILE, find_checkpoint, load_model, read_json
from kiara.config import Config, ModelConfig, TokenizerConfig
from kiara.data import Dataset, as_prepared
from kiara.families import read_config
from kiara.model import GPT
from kiara_runtime.errors import UserError
from kiara_runtime.system import hash_file

SEQUENCE_LENGTH = 512  # of a checkpoint with a longer context; a laptop holds a few such sequences
VALIDATIONS = 5  # in the course of a run

# Defaults of a run that starts from a checkpoint, of all weights and with adapters.
_SUITED: dict[str, Any] = {
    "optimizer": "adamw",
    "batch_size": 8,
    "warmup_steps": 10,
    "epochs": 2.0,
    "sample_prompt": "",
}
_ALL_WEIGHTS: dict[str, Any] = {"learning_rate": 1e-4, "embedding_learning_rate": 1e-4, "weight_decay": 0.01}
_LORA: dict[str, Any] = {"learning_rate": 1e-3, "embedding_learning_rate": 1e-3, "weight_decay": 0.0}
_PREFERENCE = {
    adapted: {"learning_rate": rate, "embedding_learning_rate": rate, "epochs": 1.0}
    for adapted, rate in ((False, 1e-5), (True, 1e-4))
}


def as_continued(config: Config) -> Config:
    """The configuration with the shape and tokenizer of training.init_from, if it is set, and settings that suit it.

    Raises UserError for settings of the shape, because they would have no effect.
    """
    training = config.training
    if training.init_from is None:
        if config.adapt.rank is not None:
            raise UserError("adapt.rank", "needs a checkpoint to adapt", "name one with --init-from")
        return config
    preferring = as_prepared(config).data.format == "preference"
    _check_combinations(config, preferring)
    folder = find_checkpoint(Path(training.init_from))
    try:
        shape, _ = read_config(read_json(folder / "config.json"))
    except UserError as error:
        raise error.inside(folder, "/") from None
    _check_effect(config, shape, folder)
    suited = {"sequence_length": min(shape.context_length, SEQUENCE_LENGTH), **_suited(config, preferring)}
    chosen = {name: value for name, value in suited.items() if name not in training.model_fields_set}
    return config.model_copy(
        update={
            "model": shape,
            "tokenizer": config.tokenizer.model_copy(update={"source": str(folder)}),
            "training": training.model_copy(update={**chosen, "init_from": str(folder)}),
        }
    )


def _check_combinations(config: Config, preferring: bool) -> None:
    training, adapting = config.training, config.adapt.rank is not None
    if adapting and training.quantize != "none":
        remedy = "leave adapt.rank out, to train all weights"
        raise UserError("training.quantize", "cannot be combined with adapt.rank", remedy, value=training.quantize)
    if training.parallel == "fsdp" and (adapting or preferring):
        raise UserError("training.parallel", "fsdp cannot be combined with adapters or preferences", "set it to ddp")


def _check_effect(config: Config, shape: ModelConfig, folder: Path) -> None:
    """Raise UserError for a setting that the checkpoint's shape or tokenizer leaves without effect."""
    if (size := config.tokenizer).vocab_size != TokenizerConfig().vocab_size:
        raise UserError(
            "tokenizer.vocab_size", f"differs from that of {folder}", "remove this setting", value=size.vocab_size
        )
    for name in config.model.model_fields_set:
        if (given := getattr(config.model, name)) != (there := getattr(shape, name)):
            raise UserError(f"model.{name}", f"differs from {there!r} in {folder}", "remove this setting", value=given)
    if (length := config.training.sequence_length) is not None and length > shape.context_length:
        raise UserError("training.sequence_length", f"is above the context of {folder}", "lower it", value=length)
    if config.tokenizer.source not in (None, str(folder)):
        raise UserError("tokenizer.source", f"has no effect together with {folder}", "remove it")


def _suited(config: Config, preferring: bool) -> dict[str, Any]:
    """Defaults of the training settings."""
    adapting = config.adapt.rank is not None
    suited = {**_SUITED, **(_LORA if adapting else _ALL_WEIGHTS), **(_PREFERENCE[adapting] if preferring else {})}
    if "max_steps" in config.training.model_fields_set:
        del suited["epochs"]
    return suited


def with_steps(config: Config, dataset: Dataset) -> Config:
    """The configuration with training.epochs turned into steps, over which validations are spread."""
    training = config.training
    if training.epochs is None:
        return config
    sequences = dataset.train.sequences(config.sequence_length)
    steps = math.ceil(training.epochs * sequences / training.sequences)
    chosen: dict[str, Any] = {"max_steps": max(1, steps), "epochs": None}
    for name in ("eval_every", "checkpoint_every"):
        if name not in training.model_fields_set:
            chosen[name] = max(1, math.ceil(steps / VALIDATIONS))
    return config.model_copy(update={"training": training.model_copy(update=chosen)})


def pretrained_model(folder: Path, dataset: Dataset) -> GPT:
    """The model of a checkpoint; raises UserError if the data were prepared with another tokenizer."""
    model, tokenizer = load_model(folder)
    if tokenizer.definition != dataset.tokenizer.definition:
        raise UserError(
            dataset.folder,
            f"was prepared with another tokenizer than that of {folder}",
            f"prepare the text again with --tokenizer {folder}",
        )
    return model


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weights of a checkpoint, in hexadecimal."""
    return hash_file(folder / WEIGHTS_FILE)
