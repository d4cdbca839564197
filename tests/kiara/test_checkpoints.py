"""Which checkpoint is taken, and what is said of a damaged one. Folders written by hand: no model is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kiara.checkpoints.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    Checkpoint,
    best_checkpoint,
    check_files,
    first_whole,
    list_checkpoints,
    prune_checkpoints,
    trained_checkpoint,
    trained_on,
)
from kiara_runtime.errors import UserError
from kiara_runtime.system import hash_file


def _write(folder: Path, files: tuple[str, ...] = ("model.safetensors",), **state: Any) -> Path:
    """A checkpoint whose files contain their own names."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    values = {"step": 1, "seed": 1, "data_sha256": "", "dataset": None, **state}
    values["sha256"] = {name: hash_file(folder / name) for name in files}
    (folder / STATE_FILE).write_text(json.dumps(values), "utf-8")
    return folder


def _run(folder: Path, losses: list[float]) -> list[Checkpoint]:
    """A run with a checkpoint every ten steps."""
    for i, loss in enumerate(losses, start=1):
        _write(folder / "checkpoints" / f"epoch-{i:04}-step-{10 * i:06}", step=10 * i, val_loss=loss)
    return list_checkpoints(folder)


@pytest.mark.parametrize("name", ["model.safetensors", ADAPTER_FILE, ADAPTER_CONFIG])
def test_every_recorded_file_is_checked(tmp_path: Path, name: str) -> None:
    folder = _write(tmp_path, ("model.safetensors", ADAPTER_FILE, ADAPTER_CONFIG))
    check_files(folder)
    (folder / name).write_text("other")
    with pytest.raises(UserError, match="damaged, its SHA-256 differs from the recorded one") as error:
        check_files(folder)
    assert error.value.field == str(folder / name)
    (folder / name).unlink()
    with pytest.raises(UserError, match="there is no such file"):
        check_files(folder)


def test_a_recorded_name_never_leaves_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    folder = _write(tmp_path / "checkpoint", ("model.safetensors",))
    state = json.loads((folder / STATE_FILE).read_text("utf-8"))
    state["sha256"] = {"../outside": hash_file(tmp_path / "outside")}
    (folder / STATE_FILE).write_text(json.dumps(state), "utf-8")
    with pytest.raises(UserError, match="there is no such file"):
        check_files(folder)


def test_the_first_whole_one_is_taken_and_all_damaged_ones_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    oldest, middle, newest = _run(tmp_path, [3.0, 2.0, 1.0])
    for damaged in (newest, middle):
        (damaged.folder / "model.safetensors").write_text("other")
    assert first_whole(reversed(list_checkpoints(tmp_path))) == oldest == trained_checkpoint(tmp_path)
    assert all(f"{damaged.folder}: skipped" in caplog.text for damaged in (newest, middle))
    (oldest.folder / STATE_FILE).write_text("{}", "utf-8")
    with pytest.raises(UserError, match=r"damaged, .*; the run has no undamaged checkpoint") as error:
        first_whole(reversed(list_checkpoints(tmp_path)))
    assert error.value.field == str(newest.folder / "model.safetensors")  # of the newest
    assert first_whole([]) is None


def test_training_continues_from_a_checkpoint_that_is_named(tmp_path: Path) -> None:
    folder = _write(tmp_path / "copy", ("model.safetensors", OPTIMIZER_FILE), step=30, epoch=2)
    assert trained_checkpoint(folder) == Checkpoint(folder.resolve(), 3, 30)
    (folder / OPTIMIZER_FILE).unlink()
    with pytest.raises(UserError, match="has no checkpoint that training can continue"):
        trained_checkpoint(folder)


def test_the_best_and_the_newest_are_kept(tmp_path: Path) -> None:
    found = _run(tmp_path, [3.0, 1.0, 2.0, 2.5, 4.0])
    assert [checkpoint.step for checkpoint in found] == [10, 20, 30, 40, 50]
    assert best_checkpoint(found).step == 20 and len(set(found)) == 5
    prune_checkpoints(tmp_path, 2)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [20, 40, 50]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_missing_training_text_names_the_remedy(tmp_path: Path) -> None:
    imported = _write(tmp_path / "imported")
    with pytest.raises(UserError, match=r"is imported, .*; start a new run"):
        trained_on(imported)
    with pytest.raises(UserError, match=r"is imported, .*; give other text with --calibration"):
        trained_on(imported, "--calibration")
    gone = _write(tmp_path / "gone", dataset="../data")
    with pytest.raises(UserError, match=r"its data folder .* is missing; restore it, or start a new run"):
        trained_on(gone)


@pytest.mark.parametrize("missing", ["step", "seed", "data_sha256"])
def test_a_state_without_its_origin_is_refused(tmp_path: Path, missing: str) -> None:
    folder = _write(tmp_path)
    state = json.loads((folder / STATE_FILE).read_text("utf-8"))
    del state[missing]
    (folder / STATE_FILE).write_text(json.dumps(state), "utf-8")
    with pytest.raises(UserError, match=f"the field {missing} is missing"):
        trained_on(folder)
