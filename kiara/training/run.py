"""The files of a run other than its checkpoints: configuration, log, metrics, samples, plot.

RUN/config.yaml  train.log  metrics.jsonl  samples.txt  loss.png  checkpoints/
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from kiara.checkpoints import Checkpoint, first_whole, list_checkpoints
from kiara.config import Config, config_yaml, load_config
from kiara.console import log_to_file
from kiara.files import CONFIG_FILE, RUN_MARK, claim, write_text
from kiara.report import METRICS_FILE, SAMPLES_FILE, plot_run, read_metrics
from kiara.training.trackers import Trackers
from kiara_runtime.errors import UserError
from kiara_runtime.system import FolderLock

PLOT_FILE, LOG_FILE = "loss.png", "train.log"

# Settings that a resumed run may change: length, learning rates, intervals, samples and device. All others must stay.
_MAY_CHANGE = frozenset(
    f"training.{name}"
    for name in (
        "max_steps epochs learning_rate embedding_learning_rate eval_every eval_tokens checkpoint_every keep_last "
        "sample_prompt sample_tokens device compile batch_size global_batch parallel activation_checkpointing "
        "patience track"
    ).split()
)


class Run:
    """A run folder, opened for training; `last` is the checkpoint to continue from, or None."""

    def __init__(
        self, folder: Path, config: Config, resume: bool, writes: bool = True, origin: Checkpoint | None = None
    ) -> None:
        """writes: false in all processes except the first; they only read checkpoints. origin: checkpoint of another
        run to start from if this one has none.
        """
        self.folder, self.config, self._writes = folder, config, writes
        self.init_sha256: str | None = None  # of the weights that training.init_from names
        self._trackers: Trackers | None = None
        if not writes:
            self.last = first_whole(reversed(list_checkpoints(folder))) or origin
            return
        self._lock = self._acquire_lock()
        try:
            self.last = self._newest(resume) or origin
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the lock on the folder."""
        if self._trackers:
            self._trackers.close()
        if self._writes:
            self._lock.close()

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint."""
        return next(reversed(list_checkpoints(self.folder)), None)

    def logged(self) -> AbstractContextManager[None]:
        """Log to a file in the folder until the block ends."""
        return log_to_file(self.folder / LOG_FILE) if self._writes else nullcontext()

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
        """Write the configuration and remove records of steps that will be repeated. Nothing is changed before this."""
        if not self._writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob("checkpoints/.epoch-*"):  # of a process killed while writing or deleting
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        write_text(self.folder / CONFIG_FILE, RUN_MARK + config_yaml(self.config))
        step = self.last.step if self.last else 0
        for checkpoint in list_checkpoints(self.folder):
            if checkpoint.step > step:  # newer than `last`, so damaged; its name may be needed
                checkpoint.folder.rename(checkpoint.folder.with_name(f"damaged-{checkpoint.folder.name}"))
        before = self.metrics()
        if not before and self.last:  # it starts from another run
            before = read_metrics(self.last.folder.parent.parent / METRICS_FILE)
        kept = [record for record in before if record["step"] <= step]
        if step:
            kept.append({"step": step, "resumed": True})
        write_text(self.folder / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in kept))
        self._trackers = Trackers(self.folder, self.config)

    def record(self, **values: Any) -> None:
        """Append a line to the metrics."""
        if not self._writes:
            return
        with (self.folder / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        if self._trackers:
            self._trackers.log(values["step"], values)

    def metrics(self) -> list[dict[str, Any]]:
        """The records so far."""
        return read_metrics(self.folder / METRICS_FILE)

    def plot(self) -> None:
        """Draw the curves."""
        if self._writes:
            plot_run(self.folder.resolve().name, self.metrics(), self.folder / PLOT_FILE)

    def sample(self, step: int, text: str) -> None:
        with (self.folder / SAMPLES_FILE).open("a", encoding="utf-8") as file:
            file.write(f"--- step {step}\n{text}\n")

    def _compare(self, saved: Config) -> None:
        before, now = saved.training.sequences, self.config.training.sequences
        if before != now:
            raise UserError(
                "training.global_batch", f"{now} sequences a step where the run at {self.folder} has {before}",
                f"set it to {before}",
            )  # fmt: skip
        for path, value in _flat(self.config):
            before = dict(_flat(saved))[path]
            if value != before and path not in _MAY_CHANGE:
                raise UserError(
                    path, f"differs from {before!r} of the run at {self.folder}", "choose another --out", value=value
                )


def _flat(config: Config) -> Iterable[tuple[str, Any]]:
    for section, values in config.model_dump().items():
        yield from ((f"{section}.{name}", value) for name, value in values.items())
