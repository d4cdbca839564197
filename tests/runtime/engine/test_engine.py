"""Every concurrent request gets what it gets alone; waiting, cancelled or failed requests affect no other."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import _alone, _model, _prompt, _session
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kiara_runtime.engine.engine import Engine
from kiara_runtime.engine.session import KVCache
from kiara_runtime.errors import BusyError
from kiara_runtime.loading import load
from kiara_runtime.model import Model
from kiara_runtime.stream import Stream


@pytest.fixture(scope="module", params=[("int8", False), ("int8", True), ("fp32", False)])
def pair(bundle: Path, request: pytest.FixtureRequest) -> tuple[Model, Model]:
    """variant, and whether its KV cache is int8"""
    return _model(bundle, *request.param, slots=3), _alone(bundle, *request.param)


REQUESTS = st.fixed_dictionaries(
    {
        "start": st.integers(0, 60),
        "length": st.integers(1, 80),
        "max_tokens": st.integers(1, 30),
        "temperature": st.sampled_from([0.0, 0.9]),
        "seed": st.integers(0, 3),
    }
)


def _interleaved(streams: list[Stream], order: random.Random) -> list[list[int]]:
    """Read the streams piece by piece in random order; return the tokens of each."""
    tokens: list[list[int]] = [[] for _ in streams]
    left = list(range(len(streams)))
    while left:
        i = order.choice(left)
        piece = next(streams[i], None)
        if piece is None:
            left.remove(i)
        else:
            tokens[i] += piece.tokens
    return tokens


@settings(max_examples=30, deadline=None)
@given(requests=st.lists(REQUESTS, min_size=1, max_size=9), order=st.randoms(use_true_random=False))
def test_other_requests_in_the_batch_change_nothing(
    pair: tuple[Model, Model], requests: list[dict[str, Any]], order: random.Random
) -> None:
    """Regardless of which requests share or used the slots, and of the order in which streams are read."""
    together, alone = pair
    prompts = [_prompt(together, one.pop("start"), one.pop("length")) for one in requests]
    streams = [together.stream(prompt, ignore_eos=True, **one) for prompt, one in zip(prompts, requests, strict=True)]
    found = _interleaved(streams, order)
    expected = [
        alone.generate(prompt, ignore_eos=True, **one).tokens for prompt, one in zip(prompts, requests, strict=True)
    ]
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("kv_cache", ["fp32", "int8"])
def test_five_hundred_generations_are_identical_on_every_path(bundle: Path, tmp_path: Path, kv_cache: KVCache) -> None:
    """SequentialRunner, in a batch of eight, streamed, after a cached prefix, from a stored prompt: all identical."""
    plain, busy = _alone(bundle, int8_cache=kv_cache == "int8"), load(bundle, kv_cache=kv_cache)
    stored = [load(bundle, prompt_cache=tmp_path / "cache", kv_cache=kv_cache) for _ in range(2)]
    differing = compared = 0
    for i in range(63):
        options: dict[str, Any] = {"max_tokens": 12, "temperature": (0.0, 0.8)[i % 2], "seed": i, "ignore_eos": True}
        prompts = [_prompt(busy, (i + 7 * j) % 60, 40 + (i + j) % 40) for j in range(8)]
        expected = plain.generate(prompts[0], **options).text
        found = [
            busy.generate_all(prompts, **options)[0][0].text,
            "".join(piece.text for piece in busy.stream(prompts[0], **options)),
            busy.generate(prompts[0], **options).text,
            *(model.generate(prompts[0], **options).text for model in stored),
            *(model.generate(prompts[0], **options).text for model in stored),
            busy.generate_all([prompts[0]] * 2, **options)[1][0].text,
        ]
        compared += len(found)
        differing += sum(text != expected for text in found)
    assert compared >= 500 and differing == 0


def test_shared_prefixes_are_reused_from_the_cache(bundle: Path) -> None:
    model = load(bundle)
    prompt = _prompt(model, 0, 60)
    first = model.generate(prompt, max_tokens=5, temperature=0.0)
    again = model.generate(prompt, max_tokens=5, temperature=0.0)
    longer = model.generate([*prompt, *first.tokens[:1], *_prompt(model, 3, 20)], max_tokens=1)
    assert (first.cached_tokens, again.cached_tokens, longer.cached_tokens) == (0, 58, 60)
    together = model.generate_all([_prompt(model, 9, 50)], n=3, max_tokens=4, seed=1, temperature=1.0)[0]
    assert [one.cached_tokens for one in together[1:]] == [48, 48]
    assert len({tuple(one.tokens) for one in together}) > 1
    assert together[0].tokens == model.generate(_prompt(model, 9, 50), max_tokens=4, seed=1, temperature=1.0).tokens


def test_a_prompt_can_be_split_into_passes_anywhere(bundle: Path) -> None:
    """The engine relies on this. Equal up to rounding: kernels depend on the size of a pass and the processor."""
    for variant in ("int8", "fp32"):
        session = _session(bundle, variant)
        ids = np.array(_prompt(load(bundle), 0, 90), dtype=np.int64)
        whole = session.decoder()
        expected = whole.append(ids)
        for cuts in ([2, 90], [45, 90], [7, 9, 30, 88, 90], [88, 90]):
            decoder = session.decoder()
            parts = [decoder.append(ids[a:b]) for a, b in zip([0, *cuts], cuts, strict=False)]
            np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-4)
            np.testing.assert_allclose(decoder.cache.buffers[..., :90, :], whole.cache.buffers[..., :90, :], atol=1e-4)


def test_a_long_prompt_is_prefilled_in_small_chunks_while_others_decode(
    bundle: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(_session(bundle))
    sizes: list[tuple[int, int]] = []
    run = engine._cache.run
    monkeypatch.setattr(engine._cache, "run", lambda ids, *rest: sizes.append(ids.shape) or run(ids, *rest))
    crowd = load(bundle)
    crowd.runner = engine
    running = crowd.stream(_prompt(model, 0, 10), max_tokens=60, ignore_eos=True)
    next(running)
    sizes.clear()
    crowd.generate(_prompt(model, 20, 80), max_tokens=2)
    prompts = [tokens for rows, tokens in sizes if tokens > 1]
    assert prompts == [4] * 20
    assert sizes[1::2][:19] == [(1, 1)] * 19  # a decode step of the running request after every chunk
    sizes.clear()
    next(running)
    crowd.generate(_prompt(model, 40, 30)[::-1], max_tokens=2)  # too short to be worth splitting
    assert [tokens for rows, tokens in sizes if tokens > 1] == [30]


def test_cancelled_and_abandoned_requests_free_their_slots(bundle: Path) -> None:
    model = _model(bundle, slots=2)
    assert isinstance(model.runner, Engine)
    streams = [model.stream("def ", max_tokens=90, ignore_eos=True) for _ in range(4)]
    next(streams[0]), next(streams[1])
    assert model.runner.load() == (2, 2)
    streams[0].close()
    assert len(list(streams[0])) < 90
    del streams[1:]
    assert model.runner.load() == (0, 0)
    assert len(model.generate("x", max_tokens=5, ignore_eos=True).tokens) == 5


def test_waiting_for_several_streams_ends_at_the_first_piece_or_the_timeout(bundle: Path) -> None:
    model = _model(bundle, slots=1)
    running, queued = (model.stream("def ", max_tokens=90, ignore_eos=True) for _ in range(2))
    model.wait([queued, running])
    assert running.ready and not queued.ready
    started = time.perf_counter()
    model.wait([queued], timeout=0.0)
    assert time.perf_counter() - started < 5
    assert not queued.ready  # it had no slot yet
    running.close()
    model.wait([queued])
    assert queued.ready and queued.generation().queue_seconds > 0


def test_a_full_queue_raises_busy_error(bundle: Path) -> None:
    model = _model(bundle, slots=1, queue=2)
    kept = [model.stream("a"), model.stream("b")]
    with pytest.raises(BusyError, match=r"queue is full \(2 requests wait\)"):
        model.stream("c")
    assert next(kept[0]) and model.stream("c")  # one of them has a slot now
    kept.clear()
    assert [model.stream("d", max_tokens=0) for _ in range(9)]  # dropped streams no longer count


def test_a_fault_in_one_prefill_ends_only_that_request(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(bundle, slots=2)
    assert isinstance(model.runner, Engine)
    good, bad = (model.stream(_prompt(model, start, 30), max_tokens=5, ignore_eos=True) for start in (0, 9))
    run = model.runner._cache.run

    def failing(ids: Any, *others: Any) -> Any:
        if ids.shape[1] > 1 and ids[0, 0] == _prompt(model, 9, 1)[0]:
            raise MemoryError("no room")
        return run(ids, *others)

    monkeypatch.setattr(model.runner._cache, "run", failing)
    with pytest.raises(MemoryError):
        bad.generation()
    assert len(good.generation().tokens) == 5


PLACING = {"_admit", "free", "place", "_leave", "reuse", "_prefill", "retire"}


@settings(
    max_examples=60, deadline=None, phases=[Phase.generate]
)  # no shrinking: a failure would loop in every smaller case
@given(after=st.integers(0, 970))
def test_an_interrupt_at_any_line_of_slot_placement_loses_no_sequence(model: Model, bundle: Path, after: int) -> None:
    """Ctrl-C in a notebook, where the model is used again. `after` counts lines; some counts are never reached."""
    crowd, left = _model(bundle, slots=3), [after]
    asked = [(_prompt(model, start, 40 + start), 4 + start) for start in (0, 2, 9, 0, 5)]
    streams = [crowd.stream(prompt, max_tokens=n, temperature=0.0, ignore_eos=True) for prompt, n in asked]
    found: list[list[int]] = [[] for _ in streams]
    assert isinstance(crowd.runner, Engine)
    step, steps = crowd.runner.step, [0]

    def counted() -> None:
        steps[0] += 1
        assert steps[0] < 1000, "a sequence is lost"
        step()

    crowd.runner.step = counted  # type: ignore[method-assign]

    def interrupt(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_name not in PLACING:
            return None
        left[0] -= event == "line"
        if left[0] == -1:
            sys.settrace(None)
            raise KeyboardInterrupt
        return interrupt

    for _ in range(2):  # up to the interrupt, if there is one; then the rest
        before = sys.gettrace()
        sys.settrace(interrupt if left[0] >= 0 else before)
        try:
            while not all(stream.sequence.over and not stream.sequence.pieces for stream in streams):
                for stream, tokens in zip(streams, found, strict=True):
                    tokens += next(stream).tokens if stream.sequence.pieces or not stream.sequence.over else []
        except KeyboardInterrupt:
            continue
        finally:
            sys.settrace(before)
    assert found == [model.generate(p, max_tokens=n, temperature=0.0, ignore_eos=True).tokens for p, n in asked]
    again = crowd.generate(asked[2][0], max_tokens=13, temperature=0.0, ignore_eos=True).tokens
    assert again == found[2]
    assert len({id(slot) for slot in crowd.runner._slots._slots}) == 3
