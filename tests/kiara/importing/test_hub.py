"""`kiara import hf:...` from a server that speaks the hub's paths, each time in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import make_folder
from gguf_files import write_gguf
from hub_server import COMMIT, Hub, serve

from kiara.checkpoints.checkpoint import load_model

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def texts(corpus: Path) -> list[str]:
    return [path.read_text("utf-8") for path in sorted(corpus.glob("[a-c]*.py"))]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def command(hub: Hub, reference: str, **further: str) -> subprocess.CompletedProcess[str]:
        own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        plain = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        words = [sys.executable, "-m", "kiara", "import", reference, "--out", str(tmp_path / "ours")]
        return subprocess.run(
            words, capture_output=True, text=True, env={**plain, **own, **further}, timeout=240, check=False
        )

    return command


def test_a_model_is_fetched_and_imported(texts: list[str], tmp_path: Path, run: Run) -> None:
    """Only what is needed, even if the first download breaks off; revision and licence go along."""
    theirs = make_folder("llama", tmp_path / "hub", texts)
    (tmp_path / "hub" / "LICENSE.md").write_text("Do good.", "utf-8")
    for name in ("pytorch_model.bin", "README.md", "consolidated.safetensors", "model.onnx"):
        (tmp_path / "hub" / name).write_bytes(b"x" * 100)
    with serve(Hub(tmp_path / "hub", cut={"model.safetensors"})) as hub:
        done = run(hub, "hf:owner/name")
        if done.returncode:  # the package may give up at once
            assert "could not be fetched" in done.stderr and done.stderr.count("\n") <= 3
            done = run(hub, "hf:owner/name@main")
        assert done.returncode == 0, done.stderr
        assert len([path for kind, path, _ in hub.requests if (kind, path[-17:]) == ("GET", "model.safetensors")]) == 2
        fetched = {path.rsplit("/", 1)[-1] for kind, path, _ in hub.requests if kind == "GET" and "/resolve/" in path}
    assert fetched <= {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "LICENSE.md", "special_tokens_map.json",
    }  # fmt: skip
    ours, _ = load_model(tmp_path / "ours")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids)[0], theirs(ids).logits, atol=5e-5, rtol=0)
    assert (tmp_path / "ours" / "LICENSE.md").read_text("utf-8") == "Do good."
    state = json.loads((tmp_path / "ours" / "trainer_state.json").read_text("utf-8"))
    assert state["source"] == {"repository": "owner/name", "revision": COMMIT}


def test_a_gguf_file_is_fetched_with_all_its_parts(texts: list[str], tmp_path: Path, run: Run) -> None:
    (tmp_path / "hub" / "parts").mkdir(parents=True)
    write_gguf(tmp_path / "hub" / "parts" / "model.gguf", texts, split=5)
    (tmp_path / "hub" / "other.gguf").write_bytes(b"GGUF")
    (tmp_path / "hub" / "LICENSE").write_text("Do good.", "utf-8")
    first = min(path.name for path in (tmp_path / "hub" / "parts").iterdir())
    with serve(Hub(tmp_path / "hub")) as hub:
        done = run(hub, f"hf:owner/name:parts/{first}")
        assert done.returncode == 0, done.stderr
        assert not any("other.gguf" in path for _, path, _ in hub.requests)
        unnamed = run(hub, "hf:owner/name")
    state = json.loads((tmp_path / "ours" / "trainer_state.json").read_text("utf-8"))
    assert (tmp_path / "ours" / "LICENSE").is_file()
    assert state["source"]["file"] == f"parts/{first}"
    assert unnamed.returncode == 1 and "name one, such as hf:owner/name:other.gguf" in unnamed.stderr


@pytest.mark.parametrize(
    ("hub", "reference", "expected"),
    [
        ({}, "hf:owner", "is not a model of the hub"),
        ({}, "hf:owner/name:../x.gguf", "outside the repository"),
        ({}, "hf:owner/name:x.gguf", "has no GGUF file 'x.gguf'"),
        ({}, "hf:owner/other", "there is no such repository"),
        ({}, "hf:owner/name@v2", "has no such revision"),
        ({}, "hf:owner/name", "only pickled weights"),
        ({"token": "secret"}, "hf:owner/name", "set HF_TOKEN"),
        ({"token": "secret", "gated": True}, "hf:owner/name", "accept the terms"),
    ],
)
def test_what_cannot_be_fetched_is_told_in_a_line(
    hub: dict[str, object], reference: str, expected: str, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "pytorch_model.bin").write_bytes(b"x")
    with serve(Hub(tmp_path / "hub", **hub)) as served:  # type: ignore[arg-type]
        done = run(served, reference)
    assert done.returncode == 1 and expected in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "ours").exists()


def test_a_token_of_the_environment_is_used(tmp_path: Path, run: Run) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "pytorch_model.bin").write_bytes(b"x")
    with serve(Hub(tmp_path / "hub", token="secret")) as served:
        done = run(served, "hf:owner/name", HF_TOKEN="secret")
    assert "only pickled weights" in done.stderr


def test_a_hub_that_cannot_be_reached_is_told(tmp_path: Path, run: Run) -> None:
    done = run(Hub(tmp_path, address="http://127.0.0.1:9"), "hf:owner/name")
    assert done.returncode == 1 and "could not be fetched" in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1
