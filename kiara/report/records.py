"""Read the records of a run: metrics, samples, settings and the data card."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kiara.data import read_manifest
from kiara.files import CONFIG_FILE
from kiara_runtime.errors import UserError

METRICS_FILE, SAMPLES_FILE = "metrics.jsonl", "samples.txt"
Record = dict[str, Any]


@dataclass(frozen=True)
class RunRecords:
    """The records of a run. metrics: lines of metrics.jsonl. samples: steps and texts. data: dataset.json, if any."""

    name: str
    metrics: list[Record]
    samples: list[tuple[int, str]]
    settings: dict[str, dict[str, Any]]
    data: dict[str, Any] | None

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one figure."""
        found = [record for record in self.metrics if isinstance(record.get(name), int | float)]
        return [record["step"] for record in found], [float(record[name]) for record in found]

    def last(self, name: str) -> float | None:
        """The last value of a figure."""
        _, values = self.curve(name)
        return values[-1] if values else None

    @property
    def resumed(self) -> list[int]:
        """Steps from which the run was resumed."""
        return [record["step"] for record in self.metrics if record.get("resumed")]


def read_run(folder: Path) -> RunRecords:
    """Read the records of a run folder; raises UserError if it is not one."""
    if not (folder / METRICS_FILE).is_file():
        raise UserError(
            folder, "is not a run, because it has no metrics.jsonl", "name a folder that `kiara train` wrote"
        )
    settings: Any = yaml.safe_load((folder / CONFIG_FILE).read_text("utf-8")) if (folder / CONFIG_FILE).exists() else {}
    return RunRecords(
        name=folder.resolve().name,
        metrics=read_metrics(folder / METRICS_FILE),
        samples=_samples(folder / SAMPLES_FILE),
        settings=settings if isinstance(settings, dict) else {},
        data=_data_of(folder),
    )


def read_metrics(path: Path) -> list[Record]:
    """The records so far, without a last line that a killed process left incomplete."""
    lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def _samples(path: Path) -> list[tuple[int, str]]:
    text = path.read_text("utf-8") if path.exists() else ""
    parts = re.split(r"^--- step (\d+)\n", text, flags=re.MULTILINE)[1:]
    return [(int(step), sample.removesuffix("\n")) for step, sample in zip(parts[::2], parts[1::2], strict=True)]


def _data_of(folder: Path) -> dict[str, Any] | None:
    for state in sorted(folder.glob("checkpoints/*/trainer_state.json")):
        try:
            named = json.loads(state.read_text("utf-8")).get("dataset")
            return read_manifest((state.parent / str(named)).resolve()) if named else None
        except (ValueError, AttributeError, UserError):
            continue
    return None
