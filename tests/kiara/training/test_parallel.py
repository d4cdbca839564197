"""Several processes against one: the same losses at the same global batch, checkpoints that change hands, one voice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from training_runs import _changed, _losses

import kiara
from kiara.checkpoints.checkpoint import list_checkpoints
from kiara.config.load import config_yaml
from kiara.config.sections import Config
from kiara.data.dataset import Dataset
from kiara.model.gpt import GPT
from kiara.training.parallel import World
from kiara.training.run import Run
from kiara.training.trainer import train

STEPS = 10
ENVIRON = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def exact(small_config: Config, dataset: Dataset) -> Config:
    """In float32 and at low rates. Sums in another order differ by little, but Muon's bfloat16 makes that more, and
    AdamW's first steps are as large for a gradient near zero, whose sign such a difference turns, as for any other.
    """
    steps = {"max_steps": STEPS, "checkpoint_every": 5, "eval_every": 5}
    rates = {"learning_rate": 0.002, "embedding_learning_rate": 0.002}
    changed = _changed(small_config, dtype="float32", global_batch=8, **rates, **steps)
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
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, env=ENVIRON, check=False)


@pytest.mark.parametrize("kind", ["chat", "preference"])
@pytest.mark.slow
def test_two_processes_teach_a_checkpoint_as_one_does(kind: str, imported: Path, tmp_path: Path) -> None:
    """Conversations with adapters, preferences with all weights."""
    answers = {"chat": ("completion",), "preference": ("chosen", "rejected")}[kind]
    records = [{"prompt": f"Is it {i}?", **{name: f"{name} {i}" for name in answers}} for i in range(40)]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    data = {"data.format": kind, "data.val_fraction": 0.2, "training.sequence_length": 64}
    kiara.prepare(str(tmp_path / "talks.jsonl"), tmp_path / "data", data, tokenizer=imported)
    settings = {
        "data.train": str(tmp_path / "data"), "training.sequence_length": 64, "training.max_steps": 5,
        "training.batch_size": 4, "training.dtype": "float32", "training.sample_tokens": 0,
    }  # fmt: skip
    if kind == "chat":
        settings["adapt.rank"] = 4
    assert kiara.train(tmp_path / "one", settings, init_from=imported)
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "kiara"]
    command += ["train", "--init-from", str(imported), "--out", str(tmp_path / "two"), *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRON, check=False)
    assert done.returncode == 0, done.stderr
    _assert_like(tmp_path / "two", tmp_path / "one")


def _curve(run: Path) -> list[float]:
    return [record[name] for record in _losses(run) for name in ("loss", "val_loss") if name in record]


def _assert_like(run: Path, alone: Path) -> None:
    assert _curve(run) == pytest.approx(_curve(alone), rel=1e-4)


@pytest.mark.parametrize("settings", [("parallel=fsdp",), ("parallel=ddp", "batch_size=3")])
@pytest.mark.slow
def test_two_processes_learn_what_one_does(settings: Sequence[str], exact: Config, alone: Path, tmp_path: Path) -> None:
    done = _torchrun(exact, tmp_path / "run", *settings)
    assert done.returncode == 0, done.stderr
    _assert_like(tmp_path / "run", alone)
    assert done.stderr.count("Finished in") == 1  # the first process alone prints


@pytest.mark.slow
def test_two_processes_learn_bit_for_bit_what_one_does_in_two_passes(
    exact: Config, dataset: Dataset, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun has it: PyTorch cuts its sums by threads
    try:
        assert train(Run(tmp_path / "one", _changed(exact, batch_size=4), resume=False), dataset)
    finally:
        torch.set_num_threads(threads)
    assert _torchrun(exact, tmp_path / "two").returncode == 0
    assert [r["loss"] for r in _losses(tmp_path / "two") if "loss" in r] == [
        r["loss"] for r in _losses(tmp_path / "one") if "loss" in r
    ]


def test_a_step_in_several_passes_learns_what_one_pass_does(
    exact: Config, dataset: Dataset, alone: Path, tmp_path: Path
) -> None:
    config = _changed(exact, batch_size=3, activation_checkpointing=True)
    assert train(Run(tmp_path / "run", config, resume=False), dataset)
    _assert_like(tmp_path / "run", alone)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(
    exact: Config, dataset: Dataset, alone: Path, tmp_path: Path
) -> None:
    """From one to two with sharded weights, and from there to one."""
    shared = _at_half(alone, tmp_path / "shared")
    assert _torchrun(exact, shared, "parallel=fsdp").returncode == 0
    _assert_like(shared, alone)
    single = _at_half(shared, tmp_path / "single")
    assert train(Run(single, exact, resume=True), dataset)
    _assert_like(single, alone)


def _at_half(run: Path, out: Path) -> Path:
    """The run as it was before its last checkpoint."""
    shutil.copytree(run, out)
    shutil.rmtree(list_checkpoints(out)[-1].folder)
    return out


@pytest.mark.slow
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
