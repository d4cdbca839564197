"""The examples run as they are, and the README's Python too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def _run(*command: object, cwd: Path) -> str:
    environ = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False, timeout=300, env=environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_embed(bundle: Path, tmp_path: Path) -> None:
    out = _run(sys.executable, REPOSITORY / "examples/embed.py", bundle, "def main(", cwd=tmp_path)
    assert out.count("def main(") == 2


def test_own_text(corpus: Path, tmp_path: Path) -> None:
    settings = ("training.max_steps=2", "training.batch_size=2", "model.context_length=64", "model.num_hidden_layers=1")
    options = [part for value in settings for part in ("--set", value)]
    for _ in range(2):  # the second time, everything is there already
        out = _run(REPOSITORY / "examples/own_text.sh", corpus, *options, cwd=tmp_path)
        assert "bundles/own int8:" in out
    assert (tmp_path / "bundles/own/kiara.json").is_file()


def test_the_python_of_the_readmes(bundle: Path, tmp_path: Path) -> None:
    for readme in ("README.md", "runtime/README.md"):
        blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / readme).read_text("utf-8"), re.S)
        assert blocks
        for block in blocks:
            code = block.replace('"bundles/demo"', repr(str(bundle)))
            assert code != block
            assert _run(sys.executable, "-c", code, cwd=tmp_path).strip()
