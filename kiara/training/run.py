"""The files of a run other than its checkpoints: configuration, log, metrics, samples, plot.

RUN/config.yaml  train.log  metrics.jsonl  samples.txt  loss.png  checkpoints/
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kiara.checkpoints.checkpoint import Checkpoint, first_whole, list_checkpoints
from kiara.config.load import config_yaml, load_config
from kiara.config.sections import Config
from kiara.files import CONFIG_FILE, RUN_MARK, claim, write_text
from kiara_runtime.errors import UserError
from kiara_runtime.system.folder_lock import FolderLock

METRICS_FILE, SAMPLES_FILE, PLOT_FILE = "metrics.jsonl", "samples.txt", "loss.png"

# Settings that a resumed run may change: length, learning rates, intervals, samples and device. All others must stay.
_MAY_CHANGE = frozenset(
    f"training.{name}"
    for name in (
        "max_steps learning_rate embedding_learning_rate eval_every eval_tokens checkpoint_every keep_last "
        "sample_prompt sample_tokens device compile"
    ).split()
)


class Run:
    """A run folder, opened for training; `last` is the checkpoint to continue from, or None."""

    def __init__(self, folder: Path, config: Config, resume: bool) -> None:
        self.folder, self.config = folder, config
        self._lock = self._acquire_lock()
        try:
            self.last = self._newest(resume)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the lock on the folder."""
        self._lock.close()

    def _acquire_lock(self) -> FolderLock:
        place = self.folder.resolve()
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            return FolderLock(place)
        except OSError as error:
            raise UserError(
                f"--out {self.folder}", f"cannot be written ({error.strerror})", "choose another folder"
            ) from None

    def _newest(self, resume: bool) -> Checkpoint | None:
        """The checkpoint to continue from, None for a new run."""
        claim(self.folder, "run")
        found = list_checkpoints(self.folder)
        if found:
            if not resume:
                raise UserError(
                    f"--out {self.folder}", "already holds a run", "add --resume to continue it, or choose another"
                )
            self._compare(load_config(self.folder / CONFIG_FILE, environ={}))
        return first_whole(reversed(found))

    def begin(self) -> None:
        """Write the configuration and drop metrics of steps that will run again. Nothing is written before this."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob("checkpoints/.epoch-*"):  # of a process killed while writing or deleting
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        write_text(self.folder / CONFIG_FILE, RUN_MARK + config_yaml(self.config))
        step = self.last.step if self.last else 0
        for checkpoint in list_checkpoints(self.folder):
            if checkpoint.step > step:  # newer than `last`, so damaged; its name may be needed
                checkpoint.folder.rename(checkpoint.folder.with_name(f"damaged-{checkpoint.folder.name}"))
        kept = [record for record in self.metrics() if record["step"] <= step]
        write_text(self.folder / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in kept))

    def record(self, **values: Any) -> None:
        """Append a record to metrics.jsonl."""
        with (self.folder / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The records so far, without a last line that a killed process left incomplete."""
        path = self.folder / METRICS_FILE
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}\n")]

    def sample(self, step: int, text: str) -> None:
        with (self.folder / SAMPLES_FILE).open("a", encoding="utf-8") as file:
            file.write(f"--- step {step}\n{text}\n")

    def _compare(self, saved: Config) -> None:
        for path, value in _flat(self.config):
            before = dict(_flat(saved))[path]
            if value != before and path not in _MAY_CHANGE:
                raise UserError(
                    path, f"differs from {before!r} of the run at {self.folder}", "choose another --out", value=value
                )


def _flat(config: Config) -> Iterable[tuple[str, Any]]:
    for section, values in config.model_dump().items():
        yield from ((f"{section}.{name}", value) for name, value in values.items())
