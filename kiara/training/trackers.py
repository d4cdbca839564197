"""Log metrics to TensorBoard, Weights & Biases or MLflow; each is an extra.

A tracker that fails is reported once and disabled; it never stops a run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from kiara.config import Config
from kiara.console import logger
from kiara_runtime.errors import UserError


class Tracker(Protocol):
    """A destination for metrics."""

    def log(self, step: int, figures: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run folder, for `tensorboard --logdir runs`."""

    def __init__(self, folder: Path, config: Config) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, by its own settings (WANDB_PROJECT, WANDB_MODE=offline ...)."""

    def __init__(self, folder: Path, config: Config) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(dir=str(folder), name=folder.name, id=folder.name, resume="allow", config=_flat(config))

    def log(self, step: int, figures: dict[str, float]) -> None:
        self._run.log(figures, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow, by its own settings (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME)."""

    def __init__(self, folder: Path, config: Config) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        self._mlflow: ModuleType = mlflow
        mlflow.start_run(run_name=folder.name)
        mlflow.log_params({name: str(value)[:250] for name, value in _flat(config).items()})

    def log(self, step: int, figures: dict[str, float]) -> None:
        self._mlflow.log_metrics(figures, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


TRACKERS: dict[str, Callable[[Path, Config], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


class Trackers:
    """The trackers of a run, from training.track."""

    def __init__(self, folder: Path, config: Config) -> None:
        """Raises UserError if a tracker's package is missing, before the first step."""
        self._open: dict[str, Tracker] = {}
        for name in config.training.track:
            try:
                self._open[name] = TRACKERS[name](folder, config)
            except ImportError:
                raise UserError(
                    "training.track", f"{name} is not installed", f"pip install 'kiara-slm[{name}]'"
                ) from None
            except Exception as error:
                self._left_out(name, error)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Log the numbers among these values."""
        figures = {name: float(value) for name, value in values.items() if type(value) in (int, float)}
        self._each(lambda tracker: tracker.log(step, figures))

    def close(self) -> None:
        """Close all trackers."""
        self._each(lambda tracker: tracker.close())
        self._open.clear()

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                act(tracker)
            except Exception as error:  # a tracker may raise anything
                self._left_out(name, error)

    def _left_out(self, name: str, error: Exception) -> None:
        self._open.pop(name, None)
        logger.warning("training.track: %s failed (%s) and is disabled; the run continues.", name, error)


def _flat(config: Config) -> dict[str, Any]:
    return {f"{part}.{key}": value for part, keys in config.model_dump().items() for key, value in keys.items()}
