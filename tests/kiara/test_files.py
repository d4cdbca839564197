"""Folders: what may be replaced, which process may write, what a killed process leaves behind."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from families import make_folder

from kiara.config.sections import Config
from kiara.data.dataset import Dataset
from kiara.files import claim, kind_of, new_folder
from kiara.training.run import Run
from kiara_runtime.errors import UserError
from kiara_runtime.system.folder_lock import FolderLock, LockedError

TRAIN = ("train", "--set", "training.max_steps=2", "--set", "training.compile=never")


def _state(folder: Path) -> dict[str, str]:
    """The hash of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "llama"
    make_folder("llama", folder, ["some text to learn a few merges from, the text of a test"])
    return folder


def test_folder_kinds_are_recognised_by_kiara_markers(
    run: Path, bundle: Path, dataset: Dataset, source: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    assert kiara("import", source, "--out", tmp_path / "imported").exit_code == 0
    checkpoint = next(run.glob("checkpoints/epoch-*"))
    kinds = [kind_of(path) for path in (run, checkpoint, bundle, dataset.folder, tmp_path / "imported")]
    assert kinds == ["run", "checkpoint", "bundle", "prepared folder", "imported model"]
    (tmp_path / "trainer_state.json").write_text('{"global_step": 500, "log_history": []}')
    (tmp_path / "config.yaml").write_text("# mine\nname: mine\n")
    (tmp_path / "dataset.json").write_text('{"citation": "", "splits": {}}')  # as the datasets library writes
    (tmp_path / "kiara.json").write_text('{"files": ["a"]}')
    assert kind_of(tmp_path) is None and kind_of(source) is None


def test_folders_not_written_by_kiara_are_never_replaced(
    run: Path, bundle: Path, dataset: Dataset, source: Path, corpus: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    """Every command that writes, with look-alike folders, other kinds of Kiara folders, files and links as --out."""
    commands = {
        "imported model": ("import", source),
        "bundle": ("export", run),
        "prepared folder": ("prepare", corpus),
        "run": (*TRAIN, "--set", f"data.train={dataset.folder}"),
    }
    trainer = Path(shutil.copytree(source, tmp_path / "trainer"))  # as the Hugging Face Trainer leaves it
    (trainer / "trainer_state.json").write_text('{"global_step": 500}')
    (trainer / "optimizer.pt").write_text("x")
    project = tmp_path / "project"
    project.mkdir()
    (project / "config.yaml").write_text("# my own, precious\ntraining:\n  max_steps: 2\n")
    a_file = tmp_path / "file"
    a_file.write_text("x")
    (tmp_path / "link").symlink_to(trainer)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    kept = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    before = _state(tmp_path)
    for kind, command in commands.items():
        for out in (trainer, project, a_file, tmp_path / "link", tmp_path / "dangling", kept, tmp_path):
            if out == kept and kind == "bundle":
                continue
            result = kiara(*command, "--out", out)
            assert result.exit_code == 1 and f"--out {out}: " in result.stderr, (kind, out)
            assert result.stderr.count("\n") == 1
    result = kiara(*commands["run"], "--config", project / "config.yaml", "--out", project)
    assert "exists and is not a Kiara run" in result.stderr
    assert _state(tmp_path) == before
    assert not list(tmp_path.glob(".*"))


def test_no_command_overwrites_its_own_source(
    run: Path, source: Path, corpus: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    text = Path(shutil.copytree(corpus, tmp_path / "text"))
    assert kiara("import", copy, "--out", tmp_path / "mine").exit_code == 0
    (tmp_path / "alias").symlink_to(tmp_path / "mine")
    before = _state(tmp_path)
    for command, place in (("import", copy), ("import", tmp_path / "mine"), ("export", tmp_path / "mine")):
        assert kiara(command, place, "--out", place).exit_code == 1
    assert "would replace its own input" in kiara("import", tmp_path / "alias", "--out", tmp_path / "mine").stderr
    assert "would replace its own input" in kiara("prepare", text, "--out", text).stderr
    assert _state(tmp_path) == before


def test_user_files_in_kiara_folders_are_kept(
    run: Path, corpus: Path, tmp_path: Path, kiara: Callable[..., Result], small_config: Config, dataset: Dataset
) -> None:
    out = tmp_path / "prepared"
    assert kiara("prepare", corpus, "--out", out, "--set", "tokenizer.vocab_size=320").exit_code == 0
    (out / "notes").mkdir()
    (out / "notes/todo.txt").write_text("mine")
    result = kiara("prepare", corpus, "--out", out, "--set", "tokenizer.vocab_size=384")
    assert result.exit_code == 1 and "holds notes/todo.txt, which Kiara did not write" in result.stderr
    assert (out / "notes/todo.txt").read_text() == "mine"
    (out / "notes/todo.txt").unlink()
    (out / ".DS_Store").touch()  # written by a file manager, may be deleted
    assert kiara("prepare", corpus, "--out", out, "--set", "tokenizer.vocab_size=384").exit_code == 0
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "notes.txt").write_text("mine")
    Run(copy, small_config, resume=True).close()  # a run adds to its folder and replaces nothing
    assert (copy / "notes.txt").read_text() == "mine"
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text().partition("\n")[2])
    assert kind_of(copy) == "run"  # a run from before the marker, recognised by its checkpoints


def test_a_locked_folder_is_refused_naming_the_writing_process(
    dataset: Dataset, small_config: Config, tmp_path: Path
) -> None:
    first = Run(tmp_path / "run", small_config, resume=False)
    with pytest.raises(LockedError, match=rf"process {os.getpid()} \(.*\) is writing it; wait"):
        Run(tmp_path / "run", small_config, resume=True)
    first.close()
    Run(tmp_path / "run", small_config, resume=False).close()
    with new_folder(tmp_path / "out", "bundle") as folder, pytest.raises(LockedError):
        (folder / "x").touch()
        with new_folder(tmp_path / "out", "bundle"):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from kiara.files import new_folder\n"
        "with new_folder(Path(sys.argv[1]), 'bundle') as folder:\n"
        "    (folder / 'half').write_text('x'); print('writing', flush=True); time.sleep(600)\n"
    )
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"writing\n"
        with pytest.raises(LockedError, match=f"process {process.pid} "):
            FolderLock(out)
        process.send_signal(signal.SIGKILL)
    assert len(list(tmp_path.glob(".out-*.partial"))) == 1
    (tmp_path / ".out-of-another").mkdir()
    with new_folder(out, "bundle") as folder:
        (folder / "whole").write_text("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out-of-another", "out"]


def test_a_half_replaced_folder_is_restored(tmp_path: Path) -> None:
    """After a kill between the two renames only the old folder exists."""
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old/kept").write_text("x")
    with pytest.raises(UserError, match="not a Kiara bundle"), new_folder(tmp_path / "out", "bundle"):
        pass
    assert (tmp_path / "out/kept").read_text() == "x" and len(list(tmp_path.iterdir())) == 1
    claim(tmp_path / "other", "bundle")


FULL = {
    "prepare": ("prepare", "{corpus}", "--out", "out", "--set", "tokenizer.vocab_size=320"),
    "train": (*TRAIN, "--set", "data.train={data}", "--out", "out"),
    "import": ("import", "{source}", "--out", "out"),
    "export": ("export", "{run}", "--out", "out"),
}


@pytest.mark.parametrize("command", FULL)
@pytest.mark.slow
def test_a_full_disk_gives_a_one_line_error(
    command: str, run: Path, source: Path, corpus: Path, dataset: Dataset, tmp_path: Path
) -> None:
    """A file size limit of 40 KiB fails like a full disk."""
    places = {"corpus": corpus, "data": dataset.folder, "source": source, "run": run}
    words = " ".join(word.format(**places) for word in FULL[command])
    script = f"ulimit -f 40; exec {sys.executable} -c 'from kiara.commands.main import main; main()' {words}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert not [path for path in tmp_path.iterdir() if path.name != "out"] and (
        command == "train" or not list(tmp_path.iterdir())
    )
