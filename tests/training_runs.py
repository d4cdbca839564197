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
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]
