"""Several processes against one: the same losses at the same global batch, checkpoints that change hands, one voice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from training_runs import _changed, _losses

from kiara.checkpoints.checkpoint import list_checkpoints, load_model
from kiara.config.load import config_yaml
from kiara.config.sections import Config
from kiara.data.dataset import Dataset
from kiara.model.gpt import GPT
from kiara.training.parallel import World
from kiara.training.run import Run
from kiara.training.trainer import train

STEPS = 10


@pytest.fixture(scope="module")
def exact(small_config: Config, dataset: Dataset) -> Config:
    """In float32, where sums of other orders differ by little."""
    changed = _changed(small_config, max_steps=STEPS, dtype="float32", global_batch=8, checkpoint_every=5, eval_every=5)
    return changed.model_copy(update={"data": changed.data.model_copy(update={"train": str(dataset.folder)})})


@pytest.fixture(scope="module")
def alone(exact: Config, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert train(Run(folder, exact, resume=False), dataset)
    return folder


def _torchrun(config: Config, out: Path, *settings: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    file = out.with_suffix(".yaml")
    file.write_text(config_yaml(config), "utf-8")
    options = [part for setting in settings for part in ("--set", f"training.{setting}")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    arguments = ["kiara", "train", "--config", str(file), "--out", str(out), "--resume", *options]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, env=environ, check=False)


def _curve(run: Path) -> list[float]:
    return [record[name] for record in _losses(run) for name in ("loss", "val_loss") if name in record]


def _assert_like(run: Path, alone: Path) -> None:
    assert _curve(run) == pytest.approx(_curve(alone), rel=1e-4)
    ours, theirs = (load_model(list_checkpoints(folder)[-1].folder)[0] for folder in (run, alone))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-3)


@pytest.mark.parametrize("settings", [("parallel=ddp",), ("parallel=fsdp",), ("parallel=ddp", "batch_size=3")])
def test_two_processes_learn_what_one_does(settings: Sequence[str], exact: Config, alone: Path, tmp_path: Path) -> None:
    done = _torchrun(exact, tmp_path / "run", *settings)
    assert done.returncode == 0, done.stderr
    _assert_like(tmp_path / "run", alone)
    assert done.stderr.count("Finished in") == 1  # the first process alone prints


def test_a_step_in_several_passes_learns_what_one_pass_does(
    exact: Config, dataset: Dataset, alone: Path, tmp_path: Path
) -> None:
    config = _changed(exact, batch_size=3, activation_checkpointing=True)
    assert train(Run(tmp_path / "run", config, resume=False), dataset)
    _assert_like(tmp_path / "run", alone)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_goes_on_with_another_number_of_processes(
    parallel: str, exact: Config, alone: Path, tmp_path: Path
) -> None:
    """Two, one, and two again."""
    out = tmp_path / "run"
    for steps, processes in ((3, 2), (6, 1), (STEPS, 2)):
        settings = (f"max_steps={steps}", f"parallel={parallel}", "learning_rate=0.005")
        done = _torchrun(exact, out, *settings, processes=processes)
        assert done.returncode == 0, done.stderr
    losses = [record["loss"] for record in _losses(out) if "loss" in record]
    assert len(losses) == STEPS
    assert losses[0] == pytest.approx(_curve(alone)[0], rel=1e-4)


def test_what_stops_the_first_process_is_told_once(exact: Config, tmp_path: Path) -> None:
    done = _torchrun(exact, tmp_path / "run", "global_batch=1")
    assert done.returncode != 0
    assert done.stderr.count("training.global_batch: 1 sequences for 2 processes; give each at least one") == 1


def test_rows_are_shared_out_without_gap_or_overlap() -> None:
    for size in range(1, 9):
        for rows in range(size, 40):
            shares = [World(rank, size).share(rows) for rank in range(size)]
            assert [row for share in shares for row in share] == list(range(rows))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_activation_checkpointing_changes_no_gradient(small_config: Config) -> None:
    gradients = []
    for recompute in (False, True):
        model = GPT(small_config.model, 320)
        model.initialise(0)
        model.recompute = recompute
        ids = torch.arange(24).view(2, 12)
        model.train().loss(ids[:, :-1], ids[:, 1:]).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
