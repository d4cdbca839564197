"""The examples and the Python code of the READMEs run unchanged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from serving import TOOL_TEMPLATE, served, with_chat

import kiara_runtime

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def _run(*command: object, cwd: Path) -> str:
    environ = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False, timeout=300, env=environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_embed_example(bundle: Path, tmp_path: Path) -> None:
    out = _run(sys.executable, REPOSITORY / "examples/embed.py", bundle, "def main(", cwd=tmp_path)
    assert out.count("def main(") == 2


def test_the_tools_example(bundle: Path, tmp_path: Path) -> None:
    folder = with_chat(bundle, tmp_path / "caller", TOOL_TEMPLATE)
    out = _run(sys.executable, REPOSITORY / "examples/tools.py", folder, "x", cwd=tmp_path)
    assert re.search(r'^calls now\(\{"part": "(date|time)"\}\)$', out, re.MULTILINE) and "\ntool: " in out


def test_the_own_text_example(corpus: Path, tmp_path: Path) -> None:
    settings = ("training.max_steps=2", "training.batch_size=2", "model.context_length=64", "model.num_hidden_layers=1")
    options = [part for value in settings for part in ("--set", value)]
    for _ in range(2):  # the second run finds everything already there
        out = _run(REPOSITORY / "examples/own_text.sh", corpus, *options, cwd=tmp_path)
        assert "bundles/own int8:" in out
    assert (tmp_path / "bundles/own/kiara.json").is_file()


def test_readme_python_blocks_run(bundle: Path, tmp_path: Path) -> None:
    for readme in ("README.md", "runtime/README.md"):
        blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / readme).read_text("utf-8"), re.S)
        assert blocks
        for block in blocks:
            code = block.replace('"bundles/demo"', repr(str(bundle)))
            with served(bundle) if "base_url=" in block else nullcontext() as server:
                if server is not None:
                    code = code.replace("http://127.0.0.1:8000", server.url).replace('"demo"', '"small"')
                assert code != block
                assert _run(sys.executable, "-c", code, cwd=tmp_path).strip()


def test_the_llm_plugin(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered as after `pip install ./examples/llm-kiara`."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "")  # no installed plugins
    monkeypatch.setenv("KIARA_BUNDLES", str(bundle))
    code = "import llm, llm_kiara; llm.plugins.pm.register(llm_kiara); from llm.cli import cli; cli()"
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "examples/llm-kiara"))
    options = ("-m", f"kiara/{bundle.name}", "-o", "temperature", "0", "-o", "max_tokens", "12")
    expected = kiara_runtime.load(bundle).generate("def main(", max_tokens=12, temperature=0.0).text
    assert _run(sys.executable, "-c", code, "prompt", "def main(", *options, cwd=tmp_path).rstrip() == expected.rstrip()
    schema = '{"enum": ["yes", "no"]}'
    said = _run(sys.executable, "-c", code, "prompt", "x", *options, "--schema", schema, cwd=tmp_path)
    assert json.loads(said) in ("yes", "no")
