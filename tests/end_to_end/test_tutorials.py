"""The commands of the tutorials, in order, with a shorter training and in the environment that is installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from families import make_folder

from kiara_runtime.bundle.manifest import Bundle

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
INSTALLS = re.compile(r"^(make install|\. \.venv/bin/activate|.*\bpip install\b.*|python3 -m venv .*)$", re.MULTILINE)


def _commands(name: str) -> str:
    """The blocks of shell of a page, without what installs."""
    page = (REPOSITORY / f"docs/{name}.md").read_text("utf-8")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    assert len(INSTALLS.findall(blocks)) >= 3
    return INSTALLS.sub("", blocks).replace("device/bin/", "")


def _follow(commands: str, folder: Path, **settings: str) -> None:
    for name in ("docs", "examples"):
        (folder / name).symlink_to(REPOSITORY / name)
    variables = {f"KIARA_TRAINING__{name}": value for name, value in settings.items()}
    environ = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **variables}
    done = subprocess.run(
        ["bash", "-euxc", commands], cwd=folder, capture_output=True, text=True, check=False, env=environ, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_from_own_text_to_a_device(tmp_path: Path) -> None:
    commands = _commands("tutorial")
    shorter = (
        re.sub(r" --set training\S+", "", commands)
        .replace("--config small", "--config tiny")
        .replace("kiara train", "kiara train --set training.max_steps=2 --set training.batch_size=2")
    )
    assert shorter.count("--config tiny") == 2 and "max_steps=2" in shorter
    _follow(shorter, tmp_path)
    assert (tmp_path / "runs/mine/report.html").is_file()
    Bundle.open(tmp_path / "bundles/mine").check()


@pytest.mark.slow
def test_from_a_pretrained_model_to_a_chat(corpus: Path, tmp_path: Path) -> None:
    commands, imports = re.subn(r"^kiara import .*$", "", _commands("tutorial-pretrained"), flags=re.MULTILINE)
    assert imports == 1
    make_folder("llama", tmp_path / "original", [path.read_text("utf-8") for path in sorted(corpus.glob("[a-c]*.py"))])
    config = tmp_path / "original/config.json"
    longer = json.loads(config.read_text("utf-8")) | {"max_position_embeddings": 1024}  # no weight depends on it
    config.write_text(json.dumps(longer), "utf-8")
    subprocess.run([BIN / "kiara", "import", tmp_path / "original", "--out", tmp_path / "models/smollm2"], check=True)
    _follow(commands, tmp_path, MAX_STEPS="2", SEQUENCE_LENGTH="256", BATCH_SIZE="2", SAMPLE_TOKENS="4")
    assert "What do my notes say about" in (tmp_path / "compare.html").read_text("utf-8")
    Bundle.open(tmp_path / "bundles/chats").check()
