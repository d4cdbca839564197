"""Helpers shared by the training tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
