"""Embeddings of a bundle, compared with PyTorch's hidden states, alone and beside texts that are generated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import kiara_runtime.engine.embedding_queue as queue
from kiara.checkpoints import find_checkpoint, load_model
from kiara.model.gpt import GPT
from kiara_runtime.aio import AsyncModel
from kiara_runtime.errors import UserError
from kiara_runtime.loading import load
from kiara_runtime.model import Model

PROMPT = "def main(argv):\n    parser = argparse.ArgumentParser()\n"
TEXTS = ["a", "def main(argv):", "import os\n" * 8]


@pytest.fixture(scope="module")
def network(run: Path) -> GPT:
    return load_model(find_checkpoint(run))[0].eval()


@pytest.fixture(scope="module")
def model(embedding_bundle: Path) -> Iterator[Model]:
    with load(embedding_bundle, "fp32", slots=3) as model:
        yield model


def _expected(network: GPT, ids: list[int], pooling: str) -> NDArray[np.float32]:
    with torch.no_grad():
        states = network.hidden_states(torch.tensor([ids]))[0][0]
    pooled = states.mean(dim=0) if pooling == "mean" else states[-1]
    return (pooled / pooled.norm()).numpy()


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize(("variant", "least"), [("fp32", 0.99999), ("fp16", 0.9999), ("int8", 0.99)])
def test_embeddings_are_the_pooled_hidden_states_of_pytorch(
    embedding_bundle: Path, network: GPT, variant: str, least: float, pooling: Any
) -> None:
    with load(embedding_bundle, variant) as model:
        found = model.embed(TEXTS, pooling)
        for text, vector in zip(TEXTS, found, strict=True):
            assert vector @ _expected(network, model.encode_prompt(text), pooling) > least
    assert found.dtype == np.float32 and found.shape == (3, network.config.hidden_size)
    assert np.allclose(np.linalg.norm(found, axis=1), 1)


@settings(deadline=None, max_examples=20)
@given(texts=st.lists(st.text(max_size=40), max_size=6), size=st.integers(1, 64))
def test_a_batch_is_each_text_alone_and_dimensions_cut(model: Model, texts: list[str], size: int) -> None:
    whole = model.embed(texts, normalize=False)
    for text, vector in zip(texts, whole, strict=True):
        assert (model.embed([text], normalize=False)[0] == vector).all()
    cut = model.embed(texts, dimensions=size)
    assert cut.shape == (len(texts), size)
    assert np.allclose(cut * np.linalg.norm(whole[:, :size], axis=1, keepdims=True), whole[:, :size], atol=1e-5)


def test_texts_to_embed_change_nothing_for_a_text_beside_them(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "CHUNK_BESIDE_OTHERS", 8)  # several passes for a text
    monkeypatch.setattr(queue, "SHARE", 1000)  # one after every step
    asked: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True, "seed": 3}
    alone, vectors = model.generate(PROMPT, **asked), model.embed(TEXTS)
    streams = [model.stream(PROMPT, **asked) for _ in range(3)]  # every slot is taken
    beside = model.embed(TEXTS)
    assert not any(stream.sequence.finished for stream in streams)  # no text to embed waited for a slot
    assert all(stream.generation().text == alone.text for stream in streams)
    assert np.allclose(beside, vectors, atol=1e-5)
    assert model.generate(PROMPT, max_tokens=1).cached_tokens > 0  # its keys and values are still there


def test_passes_beside_other_work_take_a_share_of_the_time() -> None:
    import threading
    import time

    from kiara_runtime.engine import Pool, Sequence

    lock = threading.Lock()
    waiting = queue.EmbeddingQueue(4, lock)
    text = Sequence.__new__(Sequence)
    text.tokens, text._draft, text.computed, text.pool = list(range(1000)), [], 0, Pool("mean")
    text.finished = text.cancelled = False
    text.error = text.admitted = None
    waiting.add(text)
    passes = list(waiting.passes(1.0))
    assert [batch.ids.shape for batch in passes] == [(1, queue.CHUNK_BESIDE_OTHERS)] and passes[0].first == 4
    for batch in waiting.passes(1000.0):
        time.sleep(0.05)
        assert batch.lengths == [queue.CHUNK_BESIDE_OTHERS]
    assert not list(waiting.passes(0.3))  # 0.05 s are paid with 0.62 s of other work
    assert list(waiting.passes(1000.0))
    assert [batch.ids.shape[1] for batch in waiting.passes(0.0)] == [queue.CHUNK]  # alone: at once


def test_a_cancelled_text_leaves_the_queue(model: Model) -> None:
    stream = model.begin_embedding(model.prompt_ids("x"), "mean")
    stream.close()
    assert model.embed(["x"]).shape[0] == 1
    assert model.runner.load() == (0, 0)


def test_embedding_in_an_event_loop(model: Model) -> None:
    assert (asyncio.run(AsyncModel(model).embed(TEXTS)) == model.embed(TEXTS)).all()


def test_bad_arguments_are_refused(model: Model, bundle: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"texts": "one"}, "texts"),
        ({"texts": ["x"], "pooling": "max"}, "pooling"),
        ({"texts": ["x"], "dimensions": 65}, "dimensions"),
        ({"texts": ["x"], "dimensions": 0}, "dimensions"),
        ({"texts": ["x", "y " * 200]}, "texts[1]"),
    ]
    for arguments, field in wrong:
        with pytest.raises(UserError) as error:
            model.embed(**arguments)
        assert error.value.field == field
    with load(bundle) as other, pytest.raises(UserError, match="kiara export --embeddings"):
        other.embed(["x"])
    assert model.embed([], dimensions=5).shape == (0, 5)


def test_the_command_prints_or_writes_vectors(
    embedding_bundle: Path, model: Model, kiara_run: Callable[..., Result], tmp_path: Path, monkeypatch: Any
) -> None:
    result = kiara_run("embed", embedding_bundle, *TEXTS[:2], "--variant", "fp32")
    printed = np.array([json.loads(line) for line in result.stdout.splitlines()], dtype=np.float32)
    assert (printed == model.embed(TEXTS[:2])).all()
    lines = tmp_path / "lines.txt"
    lines.write_text("\ufeffa\r\n\nb", "utf-8")
    with lines.open("rb") as file:
        monkeypatch.setattr("sys.stdin", type("Pipe", (), {"buffer": file, "isatty": lambda self: False})())
        from kiara_runtime.commands.embed import _batches

        assert list(_batches(())) == [["a", "", "b"]]
    written = tmp_path / "vectors.npy"
    assert kiara_run("embed", embedding_bundle, "a", "b", "--out", written, "--pooling", "last").exit_code == 0
    assert np.load(written).shape == (2, 64)
    result = kiara_run("embed", embedding_bundle, "a", "--out", tmp_path / "vectors.txt")
    assert result.exit_code == 1 and "--out" in result.stderr and ".npy" in result.stderr
