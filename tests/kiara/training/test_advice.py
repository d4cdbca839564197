"""What is said while training, when it ends early, and what trackers are told."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training_runs import _changed, _losses

from kiara.checkpoints.checkpoint import list_checkpoints
from kiara.config.sections import Config
from kiara.data.dataset import Dataset
from kiara.face import train as train_run
from kiara.training.advice import STALLED, advice, stalled
from kiara.training.run import Run
from kiara.training.trackers import TRACKERS
from kiara.training.trainer import train
from kiara.training.validation import Validation
from kiara_runtime.errors import UserError


def _records(training: list[float], validation: list[float]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for step, (loss, val_loss) in enumerate(zip(training, validation, strict=True), 1):
        found += [{"step": step, "loss": loss}, {"step": step, "val_loss": val_loss}]
    return found


def test_a_plateau_and_overfitting_are_told_apart() -> None:
    flat, rising = [3.0, 2.0, *[2.0] * STALLED], [3.0, 2.0, *[2.1] * STALLED]
    assert stalled(_records(flat, flat)) == STALLED
    said = advice(_records(flat, flat))
    assert said is not None and "a plateau" in said and "step 2" in said
    falling = [3.0, 2.0, *[1.9 - 0.1 * i for i in range(STALLED)]]
    said = advice(_records(falling, rising))
    assert said is not None and "overfitting" in said
    assert advice(_records(falling, falling)) is None
    assert advice(_records(flat[:-1], flat[:-1])) is None  # not yet
    said = advice(_records([3.0, 2.0, 1.5], [3.0, 2.0, 2.1]))
    assert said is not None and "for a validation" in said and "overfitting" in said  # plain at once
    assert advice(_records([3.0, 2.0, 1.5, 1.0], [3.0, 2.0, 2.1, 2.2])) is None  # told already
    assert advice([]) is None


def test_patience_ends_a_run_early_and_whole(
    small_config: Config, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Validation.__call__

    def flat(validation: Validation, tokens: int | None) -> Any:
        found = measured(validation, 1)
        return type(found)(**{**found.__dict__, "loss": 2.0})

    monkeypatch.setattr(Validation, "__call__", flat)
    config = _changed(small_config, max_steps=40, eval_every=2, checkpoint_every=40, patience=3)
    assert train(Run(tmp_path / "run", config, resume=False), dataset)
    assert list_checkpoints(tmp_path / "run")[-1].step == 8  # the first is the best, then three without a gain
    assert any("final_val_loss" in record for record in _losses(tmp_path / "run"))


class _Recorder:
    def __init__(self, folder: Path, config: Config) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        _Recorder.last = self

    def log(self, step: int, figures: dict[str, float]) -> None:
        self.logged.append((step, figures))

    def close(self) -> None:
        raise OSError("the network is down")


class _Broken(_Recorder):
    def log(self, step: int, figures: dict[str, float]) -> None:
        raise ConnectionError("the network is down")


def test_trackers_get_the_figures_and_never_stop_a_run(
    small_config: Config, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setitem(TRACKERS, "wandb", _Broken)
    monkeypatch.setitem(TRACKERS, "mlflow", _Recorder)
    config = _changed(small_config, max_steps=3, track=["wandb", "mlflow"])
    assert train(Run(tmp_path / "run", config, resume=False), dataset)
    logged = _Recorder.last.logged
    assert [step for step, figures in logged if "loss" in figures] == [1, 2, 3]
    assert any("val_bits_per_byte" in figures for _, figures in logged)
    assert caplog.text.count("wandb failed (the network is down) and is disabled") == 1


def test_tensorboard_is_written_through_pytorch_s_own_writer(
    small_config: Config, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, float, int]] = []
    writer = SimpleNamespace(add_scalar=lambda *given: written.append(given), close=lambda: None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=lambda folder: writer))
    config = _changed(small_config, max_steps=2, track=["tensorboard"])
    assert train(Run(tmp_path / "run", config, resume=False), dataset)
    assert [step for name, _, step in written if name == "loss"] == [1, 2]


def test_a_tracker_that_is_not_installed_is_refused_before_a_step(
    small_config: Config, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"training.track: wandb is not installed; pip install 'kiara-slm\[wandb\]'"):
        train(Run(tmp_path / "run", _changed(small_config, track=["wandb"]), resume=False), dataset)
    assert not _losses(tmp_path / "run")


def test_a_branch_begins_where_the_other_run_stands(run: Path, tmp_path: Path) -> None:
    half = list_checkpoints(run)[0].folder
    assert train_run(tmp_path / "same", branch=half)
    assert _losses(tmp_path / "same") == _losses(run)  # nothing was changed, so nothing differs
    assert train_run(tmp_path / "other", {"training.quantize": "int4"}, branch=half)
    first, second = ([r for r in _losses(each) if "loss" in r] for each in (tmp_path / "other", run))
    assert first[:20] == second[:20] and first[20:] != second[20:]
    with pytest.raises(UserError, match="model: has another shape than"):
        train_run(tmp_path / "shape", {"model.num_hidden_layers": 1}, branch=half)
    with pytest.raises(UserError, match="has no checkpoint that training can continue"):
        train_run(tmp_path / "none", branch=tmp_path)
