"""Checkpoints on disk: safetensors and JSON, written completely or not at all, hashes checked before use."""

from kiara.checkpoints.checkpoint import (
    ADAPTER_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    WEIGHTS_FILE,
    Adapter,
    Checkpoint,
    check_finite,
    find_checkpoint,
    first_whole,
    list_checkpoints,
    load_model,
    prune_checkpoints,
    read_state,
    read_tensors,
    save_checkpoint,
    trained_checkpoint,
    trained_on,
)
from kiara.checkpoints.json_files import read_json, write_json

__all__ = [
    "ADAPTER_FILE",
    "OPTIMIZER_FILE",
    "STATE_FILE",
    "WEIGHTS_FILE",
    "Adapter",
    "Checkpoint",
    "check_finite",
    "find_checkpoint",
    "first_whole",
    "list_checkpoints",
    "load_model",
    "prune_checkpoints",
    "read_json",
    "read_state",
    "read_tensors",
    "save_checkpoint",
    "trained_checkpoint",
    "trained_on",
    "write_json",
]
