"""Helpers shared by the training tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from kiara.config.load import parse_config
from kiara.config.sections import Config


def _changed(config: Config, **training: Any) -> Config:
    values = config.model_dump()
    return parse_config({**values, "training": {**values["training"], **training}})


def _losses(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    clock = ("seconds", "step_seconds", "tokens_per_second", "memory_mib")
    kept = [record for record in records if "resumed" not in record]
    return [{key: value for key, value in record.items() if key not in clock} for record in kept]


def _change_weights(checkpoint: Path) -> None:
    """Change an imported checkpoint so that only a hash of its own tells."""
    file, state = checkpoint / "model.safetensors", checkpoint / "trainer_state.json"
    tensors = load_file(file)
    tensors["model.norm.weight"] += 1
    save_file(tensors, file, {"format": "pt"})
    state.write_text(json.dumps({**json.loads(state.read_text("utf-8")), "sha256": {}}), "utf-8")
