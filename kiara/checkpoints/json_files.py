"""The JSON files of a checkpoint, read and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kiara.files import MAX_JSON_BYTES
from kiara_runtime.system import read_bounded_json


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint or of a folder to import."""
    return read_bounded_json(path, MAX_JSON_BYTES)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write an object as indented JSON."""
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
