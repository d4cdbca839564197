"""The engine under interrupts, faults, threads and long contexts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import _alone, _model, _prompt

from kiara_runtime.engine.engine import Engine
from kiara_runtime.errors import UserError
from kiara_runtime.loading import load
from kiara_runtime.model import Model


def test_a_closed_model_raises_and_two_models_share_a_process(bundle: Path) -> None:
    with load(bundle) as one, load(bundle, "fp32") as two:
        left = one.stream("def ", max_tokens=30, ignore_eos=True)
        next(left)
        first, second = (model.generate("def ", max_tokens=8, temperature=0.0).tokens for model in (one, two))
        assert first and second
    for attempt in (lambda: one.generate("def "), lambda: list(left)):
        with pytest.raises(UserError, match="model: it has been closed"):
            attempt()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 and later warn of threads at a fork
def test_a_forked_process_is_refused_and_does_not_hang(bundle: Path) -> None:
    model = load(bundle)
    model.generate("x", max_tokens=2)
    child = os.fork()
    if child == 0:
        try:
            model.generate("x", max_tokens=2)
        except UserError as error:
            os._exit(7 if "forked" in str(error) else 8)
        finally:
            os._exit(9)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended[0] == child and os.waitstatus_to_exitcode(ended[1]) == 7


def test_a_program_can_exit_in_the_middle_of_a_stream(bundle: Path) -> None:
    code = (
        "import sys, threading, kiara_runtime\n"
        "model = kiara_runtime.load(sys.argv[1])\n"
        "streams = [model.stream('def ', max_tokens=80, ignore_eos=True) for _ in range(12)]\n"
        "threading.Thread(target=lambda: list(streams[3]), daemon=True).start()\n"
        "print(len([next(stream) for stream in streams[:3]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, bundle], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


def test_threads_sharing_a_model_all_finish(bundle: Path, model: Model) -> None:
    shared = _model(bundle, slots=3)
    expected = [model.generate(_prompt(model, i, 30), max_tokens=15, seed=i).tokens for i in range(10)]
    found: dict[int, list[int]] = {}

    def work(i: int) -> None:
        found[i] = shared.generate(_prompt(model, i, 30), max_tokens=15, seed=i).tokens

    threads = [threading.Thread(target=work, args=(i,)) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert [found[i] for i in range(10)] == expected


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("kiara_runtime.engine.scheduler.CHUNK", 16)
    yield


@pytest.mark.usefixtures("small_chunks")
def test_the_last_prefill_chunk_has_at_least_two_tokens(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt one token longer than full chunks would leave a single token, whose pass uses another kernel."""
    for length, expected in ((32, [32]), (33, [16, 17]), (48, [16] * 3), (49, [16, 16, 17]), (50, [16, 16, 16, 2])):
        model, sizes = load(bundle), list[int]()
        cache = model.runner._cache
        run = cache.run
        monkeypatch.setattr(
            cache, "run", lambda ids, *rest, run=run, sizes=sizes: sizes.append(ids.size) or run(ids, *rest)
        )
        model.generate(_prompt(model, 0, length), max_tokens=1)
        assert sizes == expected


def test_many_sequences_can_end_in_one_step(bundle: Path) -> None:
    """Seven sequences end together and one continues. Each leaves a gap that another finished one could move into."""
    model, alone = load(bundle), _alone(bundle)
    prompts = [_prompt(model, 3 * i, 8) for i in range(8)]
    tokens = [40, *range(20, 13, -1)]  # admitted one after another, finished at about the same time
    streams = [
        model.stream(prompt, max_tokens=count, temperature=0.0, ignore_eos=True)
        for prompt, count in zip(prompts, tokens, strict=True)
    ]
    found = [list(stream) for stream in streams]
    for pieces, prompt, count in zip(found, prompts, tokens, strict=True):
        expected = alone.generate(prompt, max_tokens=count, temperature=0.0, ignore_eos=True)
        assert [token for piece in pieces for token in piece.tokens] == expected.tokens
        assert [piece.finish_reason for piece in pieces] == [None] * count + ["length"]


def test_a_fault_in_a_batched_step_is_raised_in_each_of_its_requests(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(bundle, slots=2)
    assert isinstance(model.runner, Engine)
    streams = [model.stream(_prompt(model, i, 5), max_tokens=50, ignore_eos=True) for i in range(2)]
    for stream in streams:
        next(stream)
    run = model.runner._cache.run

    def failing(ids: Any, *rest: Any) -> Any:
        if len(ids) > 1:
            raise MemoryError("no room")
        return run(ids, *rest)

    monkeypatch.setattr(model.runner._cache, "run", failing)
    for stream in streams:
        with pytest.raises(MemoryError):
            list(stream)
    assert len(model.generate("x", max_tokens=3, ignore_eos=True).tokens) == 3


def test_a_model_can_be_closed_at_interpreter_exit(bundle: Path) -> None:
    code = (
        "import atexit, sys\n"
        "models = []\n"
        "atexit.register(lambda: models[0].close())\n"
        "import kiara_runtime\n"
        "models.append(kiara_runtime.load(sys.argv[1]))\n"
        "models[0].generate('x', max_tokens=2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, bundle], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_generate_all_takes_more_requests_than_the_queue_holds(bundle: Path) -> None:
    model = _model(bundle, slots=2, queue=3)
    some = model.generate_all(["def ", "class "], n=6, max_tokens=4, seed=1, ignore_eos=True)
    assert [len(one.tokens) for one in (*some[0], *some[1])] == [4] * 12
    assert some[1][0].tokens == load(bundle).generate("class ", max_tokens=4, seed=1, ignore_eos=True).tokens


def test_limits_apply_to_tokens_forced_by_a_grammar(model: Model) -> None:
    forced = model.generate("x", regex="abcdefgh[0-9]{3}", max_tokens=0, prompt_logprobs=True)
    assert forced.tokens == []
    prompt = model.tokenize("def main(argv)")
    scored = model.generate(prompt, regex="abcdefgh", prompt_logprobs=True)
    assert scored.text == "abcdefgh" and len(scored.prompt_logprobs) == len(prompt) - 1
    tokens = model.generate("x", regex="abcdefgh").tokens
    stopped = [model.generate("x", regex="abcdefgh", stop_token_ids=[tokens[1]], logprobs=k).tokens for k in (None, 0)]
    assert stopped == [tokens[:1], tokens[:1]]
