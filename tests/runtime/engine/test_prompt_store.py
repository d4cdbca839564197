"""Stored prompts are restored bit for bit or not at all."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiara_runtime.engine.prompt_store import PromptStore
from kiara_runtime.engine.slots import common_prefix
from kiara_runtime.errors import UserError
from kiara_runtime.loading import load

TOKENS = list(range(100, 160))
RNG = np.random.default_rng(0)
BUFFERS = RNG.standard_normal((4, 2, 96, 8)).astype(np.float32)


def _save(store: PromptStore, tokens: list[int], buffers: np.ndarray) -> None:
    store.save(tokens, buffers[:, :, : len(tokens)])


def _restore(store: PromptStore, prompt: list[int], known: int, buffers: np.ndarray) -> int:
    """Fill the buffers with the longest stored prefix. Returns its length, or `known` if none is longer."""
    found = store.find(prompt, known, buffers)
    if found is None:
        return known
    buffers[:, :, : found.length] = found.content[:, :, : found.length]
    return found.length


def _file(folder: Path) -> Path:
    (path,) = folder.glob("*/*.kv")
    return path


def test_the_longest_stored_prefix_is_restored(tmp_path: Path) -> None:
    store = PromptStore(tmp_path, "model")
    _save(store, TOKENS, BUFFERS)
    _save(store, TOKENS[:40], BUFFERS)  # the longer one already contains it
    _file(tmp_path)
    for prompt, known, expected in (
        (TOKENS, 0, 60),
        ([*TOKENS[:50], 7, 7], 0, 50),
        (TOKENS[:40], 0, 40),
        (TOKENS, 60, 60),
        ([7, *TOKENS], 0, 0),
        (TOKENS[:20], 3, 3),  # too short to be worth a file
    ):
        found = np.zeros_like(BUFFERS)
        assert _restore(store, prompt, known, found) == expected
        count = expected if expected > known else 0
        np.testing.assert_array_equal(found[:, :, :count], BUFFERS[:, :, :count])
        assert not found[:, :, count:].any()
    assert _restore(PromptStore(tmp_path, "another"), TOKENS, 0, BUFFERS.copy()) == 0


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_damaged_file_never_restores_wrong_values(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = PromptStore(folder, "model")
    _save(store, TOKENS, BUFFERS)
    content = bytearray(_file(folder).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    _file(folder).write_bytes(content)
    found = np.zeros_like(BUFFERS)
    count = _restore(store, TOKENS, 0, found)
    assert count in (0, len(TOKENS))  # a flipped bit in white space of the header is harmless
    np.testing.assert_array_equal(found[:, :, :count], BUFFERS[:, :, :count])
    assert not found[:, :, count:].any()


def test_truncated_mismatched_and_invalid_files_are_skipped(tmp_path: Path) -> None:
    store = PromptStore(tmp_path, "model")
    _save(store, TOKENS, BUFFERS)
    path, found = _file(tmp_path), np.zeros_like(BUFFERS)
    content = path.read_bytes()
    for damaged in (content[:-1], content + b"x", b"", b"[]\n", b'{"tokens": 5, "sha256": 1}\n', b"{" * 100000):
        path.write_bytes(damaged)
        assert _restore(store, TOKENS, 0, found) == 0
    path.write_bytes(content)
    assert _restore(store, TOKENS, 0, np.zeros((4, 2, 96, 4), np.float32)) == 0
    assert _restore(store, TOKENS, 0, np.zeros((4, 2, 50, 8), np.float32)) == 0  # a context that is too short


def test_the_oldest_files_are_deleted_when_the_store_is_full(tmp_path: Path) -> None:
    store = PromptStore(tmp_path, "model", max_bytes=40_000)
    for first in range(4):
        _save(store, [first, *TOKENS], BUFFERS)
    kept = [json.loads(path.read_bytes().split(b"\n")[0])["tokens"][0] for path in tmp_path.glob("*/*.kv")]
    assert sorted(kept) == [2, 3]
    assert (next(tmp_path.glob("*/*.kv")).stat().st_mode & 0o077) == 0


def test_an_unwritable_folder_only_causes_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="the prompt was not stored"):
        _save(PromptStore(tmp_path / "file", "model"), TOKENS, BUFFERS)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_an_impossible_folder_is_refused_at_load(bundle: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"prompt_cache: .*; give an existing folder"):
        load(bundle, prompt_cache=tmp_path / name)


def test_a_restored_prompt_gives_the_same_output_as_a_computed_one(bundle: Path, tmp_path: Path) -> None:
    prompt = load(bundle).tokenize("def main(argv):\n    return argv\n" * 4)[:60]
    options = {"max_tokens": 20, "temperature": 0.7, "seed": 3, "logprobs": 2}
    with load(bundle, prompt_cache=tmp_path) as model:  # saved by the time it is closed
        computed = model.generate(prompt, **options)
    restored = load(bundle, prompt_cache=tmp_path).generate(prompt, **options)
    assert (computed.cached_tokens, restored.cached_tokens) == (0, len(prompt) - 2)
    assert (restored.tokens, restored.logprobs) == (computed.tokens, computed.logprobs)
    for other in ({"variant": "fp32"}, {"kv_cache": "int8"}):
        assert load(bundle, prompt_cache=tmp_path, **other).generate(prompt, **options).cached_tokens == 0
    assert load(bundle, prompt_cache=tmp_path).generate(prompt, **options).cached_tokens == len(prompt) - 2


def test_no_step_waits_for_the_disk(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write is blocked until another request has all its tokens."""
    written, finished = threading.Event(), threading.Event()
    save = PromptStore.save

    def slow(self: PromptStore, *given: Any) -> None:
        finished.wait(60)
        save(self, *given)
        written.set()

    monkeypatch.setattr(PromptStore, "save", slow)
    with load(bundle, prompt_cache=tmp_path) as model:
        prompt = model.tokenize("def main(argv):\n    return argv\n" * 4)[:60]
        other = model.stream("import", max_tokens=30, ignore_eos=True)
        next(other)
        model.generate(prompt, max_tokens=2)
        assert len(other.generation().tokens) == 29 and not written.is_set()
        finished.set()
    assert written.is_set()
    _file(tmp_path)


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix(a: list[int], b: list[int]) -> None:
    size = common_prefix(a, b)
    assert a[:size] == b[:size] and (size == min(len(a), len(b)) or a[size] != b[size])
