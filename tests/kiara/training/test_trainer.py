from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import Result
from training_runs import _changed, _losses

import kiara.training.validation
from kiara.checkpoints.checkpoint import best_checkpoint, list_checkpoints, load_model
from kiara.config.sections import Config
from kiara.data.dataset import Dataset
from kiara.data.sequences import Examples
from kiara.evaluation.evaluate import rows_at_once, window_length
from kiara.training.run import Run
from kiara.training.trainer import Trainer, train
from kiara.training.validation import Validation
from kiara_runtime.errors import UserError


def test_training_learns_and_writes_a_complete_run(run: Path) -> None:
    losses = [record["loss"] for record in _losses(run) if "loss" in record]
    assert len(losses) == 40
    assert losses[-1] < losses[0] - 1.5
    for name in ("config.yaml", "train.log", "samples.txt", "loss.png"):
        assert (run / name).stat().st_size > 0
    assert [checkpoint.folder.name for checkpoint in list_checkpoints(run)] == [
        "epoch-0001-step-000020",
        "epoch-0001-step-000040",
    ]
    assert not [path for path in run.rglob("*") if path.suffix in (".pt", ".pkl", ".pth", ".bin")]


def test_the_same_seed_gives_the_same_curve_and_weights(
    run: Path, small_config: Config, dataset: Dataset, tmp_path: Path
) -> None:
    assert train(Run(tmp_path / "again", small_config, resume=False), dataset)
    assert _losses(tmp_path / "again") == _losses(run)
    first, second = (load_model(list_checkpoints(folder)[-1].folder)[0] for folder in (run, tmp_path / "again"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert train(Run(tmp_path / "other", _changed(small_config, seed=555, max_steps=2), resume=False), dataset)
    assert _losses(tmp_path / "other")[0] != _losses(run)[0]


def test_a_resumed_run_ends_like_an_uninterrupted_one(
    run: Path, small_config: Config, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step

    def interrupted_step(trainer: Trainer) -> float:
        if trainer.step == 25:
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C would
        return step(trainer)

    monkeypatch.setattr(Trainer, "_step", interrupted_step)
    out = tmp_path / "run"
    assert threading.current_thread() is threading.main_thread()
    assert not train(Run(out, small_config, resume=False), dataset)
    monkeypatch.undo()
    assert list_checkpoints(out)[-1].step == 26
    with (out / "metrics.jsonl").open("a", encoding="utf-8") as file:  # steps after the checkpoint are run again
        file.write('{"step": 27, "loss": 99.0}\n')
    assert train(Run(out, small_config, resume=True), dataset)
    steps = [record for record in _losses(out) if "loss" in record]
    assert steps == [record for record in _losses(run) if "loss" in record]
    assert train(Run(out, small_config, resume=True), dataset)  # finished: nothing to do


def test_the_newest_and_the_best_checkpoints_are_kept(
    small_config: Config, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0, 2.5, 2.4, 2.3])
    metrics = Validation.__call__

    def scripted(validation: Validation, tokens: int | None) -> Any:
        found = metrics(validation, 1)
        return found if tokens is None else type(found)(**{**found.__dict__, "loss": next(losses)})

    monkeypatch.setattr(Validation, "__call__", scripted)
    config = _changed(small_config, max_steps=6, checkpoint_every=1, eval_every=6, keep_last=2)
    assert train(Run(tmp_path / "run", config, resume=False), dataset)
    kept = list_checkpoints(tmp_path / "run")
    assert [checkpoint.step for checkpoint in kept] == [2, 5, 6]
    assert best_checkpoint(kept).step == 2


def test_runs_are_not_overwritten_or_mixed(run: Path, small_config: Config, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add --resume"):
        Run(run, small_config, resume=False)
    with pytest.raises(UserError, match=rf"training.seed: 555 differs from {small_config.training.seed} of the run at"):
        Run(run, _changed(small_config, seed=555), resume=True)
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(UserError, match="exists and is not a Kiara run"):
        Run(tmp_path, small_config, resume=False)
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    unfinished = copy / "checkpoints/.epoch-0001-step-000042-killed"
    unfinished.mkdir()
    assert train(Run(copy, _changed(small_config, max_steps=42), resume=True), dataset)
    assert list_checkpoints(copy)[-1].step == 42 and not unfinished.exists()
    state = list_checkpoints(copy)[-1].folder / "trainer_state.json"
    state.write_text(state.read_text("utf-8").replace(dataset.sha256, "0" * 64), "utf-8")
    with pytest.raises(UserError, match="differs from the data of the run"):
        train(Run(copy, _changed(small_config, max_steps=43), resume=True), dataset)


def test_a_refused_resume_changes_nothing_and_a_truncated_line_is_skipped(
    run: Path, small_config: Config, dataset: Dataset, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    with (copy / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 40, "lo')
    before = {path: path.read_bytes() for path in copy.glob("*.*")}
    with pytest.raises(UserError, match=r"training.sample_prompt: leaves no room in model.context_length"):
        train(Run(copy, _changed(small_config, max_steps=50, sample_prompt="x " * 200), resume=True), dataset)
    assert {path: path.read_bytes() for path in copy.glob("*.*")} == before
    assert train(Run(copy, _changed(small_config, max_steps=41), resume=True), dataset)
    assert [record["step"] for record in _losses(copy) if "loss" in record] == list(range(1, 42))


def test_a_run_resumes_with_its_prepared_data_after_the_source_changed(
    tmp_path: Path, corpus: Path, kiara: Callable[..., Result]
) -> None:
    source = Path(shutil.copytree(corpus, tmp_path / "source"))
    settings = ("model.num_hidden_layers=1", "model.context_length=64", "training.batch_size=2")
    common = [f"data.train={source}", f"data.prepared_dir={tmp_path / 'data'}", "tokenizer.vocab_size=512", *settings]
    options = [part for setting in common for part in ("--set", setting)]
    out = ("--out", tmp_path / "run")
    assert kiara("train", *options, "--set", "training.max_steps=2", *out).exit_code == 0
    (source / "new.py").write_text("print('another document')\n", "utf-8")
    result = kiara("train", *options, "--set", "training.max_steps=3", *out, "--resume")
    assert result.exit_code == 0, result.stderr
    assert kiara("evaluate", tmp_path / "run").exit_code == 0
    shard = next((tmp_path / "data").glob("*/val-00000.bin"))
    shard.write_bytes(shard.read_bytes()[::-1])
    result = kiara("evaluate", tmp_path / "run")
    assert result.exit_code == 1 and "val-00000.bin: damaged" in result.stderr


def test_running_out_of_memory_in_a_step_is_reported_and_checkpoints_stay(
    small_config: Config, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step

    def hungry(trainer: Trainer) -> float:
        if trainer.step == 2:
            torch.empty(1 << 60)
        return step(trainer)

    monkeypatch.setattr(Trainer, "_step", hungry)
    config = _changed(small_config, max_steps=4, checkpoint_every=1, eval_every=4)
    with pytest.raises(UserError, match=r"training.batch_size: .* memory .*; lower it") as told:
        train(Run(tmp_path / "run", config, resume=False), dataset)
    assert told.value.name == "training"
    assert list_checkpoints(tmp_path / "run")[-1].step == 2


def test_validation_holds_at_most_256_mib_of_logits(
    small_config: Config, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = list[int]()
    batches = kiara.training.validation.held_out_examples

    def watched(*given: Any) -> Iterator[Examples]:
        for batch in batches(*given):
            sizes.append(batch.targets.size)
            yield batch

    monkeypatch.setattr(kiara.training.validation, "held_out_examples", watched)
    large: Any = SimpleNamespace(config=small_config.model, vocab_size=1 << 16)
    assert rows_at_once(large) * window_length(large) * large.vocab_size <= 1 << 26
    monkeypatch.setattr(kiara.training.validation, "rows_at_once", lambda model: 2)
    assert train(Run(tmp_path / "run", _changed(small_config, max_steps=1, checkpoint_every=1), False), dataset)
    assert sizes and max(sizes) <= 2 * small_config.model.context_length


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ["model.hidden_size=65536", "model.intermediate_size=1048576", "model.num_hidden_layers=256"],
            "too large for",
        ),
        (["training.device=cuda"], "training.device: no CUDA device is available"),
    ],
)
def test_settings_beyond_this_machine_leave_no_run(
    settings: list[str], expected: str, dataset: Dataset, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    if "CUDA" in expected and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    options = [part for setting in (f"data.train={dataset.folder}", *settings) for part in ("--set", setting)]
    result = kiara("train", *options, "--out", tmp_path / "run")
    assert result.exit_code == 1 and expected in result.stderr
    assert not (tmp_path / "run").exists()
