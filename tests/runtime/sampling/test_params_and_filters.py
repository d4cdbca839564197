"""The sampler against slow, obvious definitions, and against the processors of `transformers`."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sampling_oracles import Array, _logits, _oracle
from transformers.generation import logits_process

from kiara_runtime.errors import UserError
from kiara_runtime.sampling import filters
from kiara_runtime.sampling.params import SamplingParams
from kiara_runtime.sampling.sampler import Sampler


def _kept(logits: Array, temperature: float, **options: Any) -> dict[int, float]:
    ids, weights = filters.keep(logits, temperature, **options)
    numbers = list(range(len(logits))) if ids is None else ids.tolist()
    assert numbers == sorted(set(numbers)) and len(numbers) == len(weights) and weights.max() == 1
    return dict(zip(numbers, (weights / weights.sum()).tolist(), strict=True))


def _possible(probabilities: dict[int, float]) -> dict[int, float]:
    return {i: p for i, p in probabilities.items() if p > 0}


PARTS = st.just(1.0) | st.floats(0.01, 0.999)


@given(
    logits=_logits(),
    temperature=st.sampled_from([0.1, 0.8, 1.0, 5.0]),
    top_k=st.just(0) | st.integers(1, 50) | st.integers(1, 3000),
    typical_p=PARTS,
    top_p=PARTS,
    min_p=st.just(0.0) | st.floats(0.001, 1),
)
@settings(max_examples=200, deadline=None)
def test_filters_keep_the_same_tokens_as_full_sorts(
    logits: Array, temperature: float, top_k: int, typical_p: float, top_p: float, min_p: float
) -> None:
    options = {"top_k": top_k, "typical_p": typical_p, "top_p": top_p, "min_p": min_p}
    expected, margin = _oracle(logits, temperature, **options)  # type: ignore[arg-type]
    assume(margin > 1e-9)  # else rounding decides
    assert _possible(_kept(logits, temperature, **options)) == pytest.approx(_possible(expected), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_p": 0.6}, [1, 3]), ({"top_p": 0.4}, [1]), ({"top_p": 0.8}, [0, 1, 3]), ({"top_p": 0.9}, [0, 1, 2, 3]),
        ({"min_p": 0.3}, [1, 3]), ({"min_p": 0.2}, [0, 1, 2, 3]), ({"min_p": 1.0}, [1]), ({"top_k": 3}, [0, 1, 3]),
        ({"top_k": 3, "top_p": 0.6}, [1, 3]), ({"top_k": 9}, [0, 1, 2, 3]),
        ({"typical_p": 0.2}, [3]), ({"typical_p": 0.3}, [1, 3]), ({"typical_p": 0.8}, [0, 1, 3]),
        ({"typical_p": 0.2, "min_p": 0.9}, [3]),
    ],
)  # fmt: skip
def test_filters_keep_the_expected_tokens(options: dict[str, Any], kept: list[int]) -> None:
    """Surprisals are 3, 1, 3 and 2 bits, the entropy 1.75."""
    logits = np.log(np.array([0.125, 0.5, 0.125, 0.25], dtype=np.float32))
    assert list(_kept(logits, 1.0, **options)) == kept


@pytest.mark.parametrize("scale", [0.5, 3.0, 8.0])
@pytest.mark.parametrize(
    ("options", "warpers"),
    [
        ({"temperature": 0.7}, []),
        ({"top_k": 40}, [logits_process.TopKLogitsWarper(40)]),
        ({"top_p": 0.9}, [logits_process.TopPLogitsWarper(0.9)]),
        ({"min_p": 0.05}, [logits_process.MinPLogitsWarper(0.05)]),
        ({"typical_p": 0.8}, [logits_process.TypicalLogitsWarper(0.8)]),
        (
            {"temperature": 1.3, "top_k": 300, "typical_p": 0.9, "top_p": 0.8, "min_p": 0.02},
            [
                logits_process.TopKLogitsWarper(300), logits_process.TypicalLogitsWarper(0.9),
                logits_process.TopPLogitsWarper(0.8), logits_process.MinPLogitsWarper(0.02),
            ],
        ),
    ],
)  # fmt: skip
def test_filters_match_transformers(options: dict[str, Any], warpers: list[Any], scale: float) -> None:
    logits = (np.random.default_rng(0).standard_normal(5000) * scale).astype(np.float32)
    scores = torch.from_numpy(logits).double()[None]
    for warp in [logits_process.TemperatureLogitsWarper(float(options.get("temperature", 1.0))), *warpers]:
        scores = warp(torch.zeros((1, 1), dtype=torch.long), scores)
    expected = dict(enumerate(scores.softmax(-1)[0].tolist()))
    found = _kept(logits, **{"temperature": 1.0, **options})
    assert _possible(found) == pytest.approx(_possible(expected), rel=1e-9)
    assert 0 < len(found) < 5000 or not warpers


def test_the_repetition_penalty_matches_transformers() -> None:
    logits = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    logits[3] = 0.0
    before = logits.copy()
    seen = [0, 3, 7, 8, 9, 49]
    expected = logits_process.RepetitionPenaltyLogitsProcessor(1.3)(
        torch.tensor([[*seen, 7, 7]]), torch.from_numpy(logits.copy())[None]
    )
    assert filters.penalise(logits, np.array(seen), 1.3) == pytest.approx(expected[0].numpy(), rel=1e-6)
    assert (logits == before).all()


@pytest.mark.parametrize("temperature", [1e-5, 1e-308, 5e-324])
def test_a_temperature_near_zero_keeps_only_the_likeliest(temperature: float) -> None:
    logits = np.array([-3.0, 2.0, 1.5, 2.0, -np.inf], dtype=np.float32)
    for options in ({}, {"top_p": 0.9}, {"typical_p": 0.9}, {"min_p": 0.1}, {"top_k": 3}):
        assert _possible(_kept(logits, temperature, **options)) == {1: 0.5, 3: 0.5}  # type: ignore[arg-type]


@given(st.integers(1, 1500), st.integers(0, 1 << 32), st.floats(0, 1, exclude_max=True), st.floats(0, 1))
@example(1024, 0, math.nextafter(1, 0), 0.999)
@example(1024, 0, 0.0, 0.999)
def test_pick_follows_the_cumulative_weights(size: int, seed: int, uniform: float, zeros: float) -> None:
    rng = np.random.default_rng(seed)
    weights = np.exp(-30 * rng.random(size)) * (rng.random(size) >= zeros)
    weights[rng.integers(size)] = 1.0
    place = filters.pick(None, weights, uniform)
    above = math.fsum(weights[: place + 1]) / math.fsum(weights)
    assert weights[place] > 0
    assert math.fsum(weights[:place]) / math.fsum(weights) - 1e-12 <= uniform < above + 1e-12
    assert filters.pick(np.arange(size) * 3 + 1, weights, uniform) == place * 3 + 1


def test_rounding_never_picks_a_token_of_zero_weight() -> None:
    """In about half of these cases the sum of a block differs from its last cumulative weight."""
    for seed in range(40):
        weights = np.zeros(600)
        weights[10:200] = np.random.default_rng(seed).random(190)
        assert filters.pick(None, weights, math.nextafter(1, 0)) == 199


@pytest.mark.parametrize("part", ["top_p", "typical_p"])
def test_a_nucleus_can_include_very_unlikely_tokens(part: str) -> None:
    """The tokens are so unlikely that a first search leaves them out, but so many that the nucleus includes them."""
    logits = np.full(40_000, -13.0, dtype=np.float32)
    logits[5], logits[7:20], logits[20] = 0.0, -np.inf, -14.0
    options = {part: 0.95}
    expected, margin = _oracle(logits, 1.0, **options)  # type: ignore[arg-type]
    assert margin > 1e-9 and len(expected) > 1000
    assert _kept(logits, 1.0, **options) == pytest.approx(expected, rel=1e-9)


def _as_openai(logits: Array, params: SamplingParams, prompt: list[int], output: list[int]) -> Array:
    """The changed logits, computed token by token from the whole history."""
    counts = Counter(output)
    changed = logits.astype(np.float64)
    for j in range(len(logits)):
        if j in counts or j in prompt:
            changed[j] *= params.repetition_penalty if changed[j] < 0 else 1 / params.repetition_penalty
        changed[j] -= counts[j] * params.frequency_penalty + float(counts[j] > 0) * params.presence_penalty
        changed[j] += dict(params.logit_bias).get(j, 0.0)
        if j in params.banned_tokens:
            changed[j] = -np.inf
    return changed


@given(
    seed=st.integers(0, 1 << 32),
    temperature=st.sampled_from([0.0, 0.0, 0.8, 2.0]),
    options=st.fixed_dictionaries(
        {},
        optional={
            "repetition_penalty": st.floats(0.5, 2),
            "presence_penalty": st.floats(-2, 2),
            "frequency_penalty": st.floats(-2, 2),
            "logit_bias": st.dictionaries(st.integers(0, 11), st.floats(-5, 5), max_size=3),
            "banned_tokens": st.lists(st.integers(0, 11), max_size=8),
        },
    ),
    forced=st.sets(st.integers(0, 11)),
    allow=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_a_sequence_matches_a_slow_reference_sampler(
    seed: int, temperature: float, options: dict[str, Any], forced: set[int], allow: bool
) -> None:
    """Counts start at zero, tokens may be recorded before the first call, and each token takes one random draw."""
    params = SamplingParams(temperature=temperature, seed=seed, **options)
    rng, draw = np.random.default_rng([seed, 1]), np.random.default_rng(seed).random
    prompt = rng.integers(12, size=3).tolist()
    sampler, output = Sampler(params, prompt), list[int]()
    for step in range(12):
        if step in forced:
            output.append(step)
            sampler.record(step)
            continue
        logits = rng.standard_normal(12).astype(np.float32)
        logits.flags.writeable = False
        allowed = rng.random(12) < 0.7 if allow else np.ones(12, dtype=np.bool_)
        changed = _as_openai(logits, params, prompt, output)
        changed[~allowed] = -np.inf
        if changed.max() == -np.inf:
            with pytest.raises(UserError, match="ban fewer"):
                sampler(logits, allowed)
            continue
        token = sampler(logits, allowed if allow else None)
        assert allowed[token] and token not in params.banned_tokens
        if temperature == 0:
            assert changed[token] >= changed.max() - 1e-5
        else:
            sums = np.cumsum(np.exp((changed - changed.max()) / temperature))
            uniform = draw()
            assert token == int((sums / sums[-1] <= uniform).sum()) or np.abs(sums / sums[-1] - uniform).min() < 1e-5
        output.append(token)
        sampler.record(token)


@given(_logits(), st.data())
@settings(max_examples=100, deadline=None)
def test_banned_and_disallowed_tokens_are_never_chosen(logits: Array, data: st.DataObject) -> None:
    size = len(logits)
    banned = data.draw(st.sets(st.integers(0, size - 1), max_size=20))
    share = data.draw(st.sampled_from([0.01, 0.5, 1.0]))
    allowed = np.random.default_rng(data.draw(st.integers(0, 99))).random(size) < share
    possible = set(np.flatnonzero(allowed & (logits > -np.inf)).tolist()) - banned
    options = data.draw(
        st.sampled_from(
            [
                {}, {"top_k": 5}, {"top_p": 0.99}, {"min_p": 0.01}, {"typical_p": 0.99}, {"temperature": 0.0},
                {"temperature": 100.0}, {"logit_bias": dict.fromkeys(banned, 100.0)}, {"presence_penalty": -2.0},
            ]
        )
    )  # fmt: skip
    sampler = Sampler(SamplingParams(**options, banned_tokens=tuple(banned), seed=0), [0])  # type: ignore[arg-type]
    sampler.record(min(banned, default=0))  # a bonus for a banned token does not bring it back
    if possible:
        assert {sampler(logits, allowed) for _ in range(20)} <= possible
    else:
        with pytest.raises(UserError, match="ban fewer"):
            sampler(logits, allowed)
