"""The sampler against slow, obvious definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiara_runtime.errors import UserError
from kiara_runtime.sampling import SamplingParams, keep, make_sampler, penalise

LOGITS = st.lists(st.floats(-30, 30, width=32) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=40)


def _oracle(logits: list[float], params: SamplingParams) -> dict[int, float]:
    """Ids and probabilities, step by step as the papers define them."""
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if params.top_k:
        ranked = ranked[: params.top_k]
    weights = {i: math.exp((logits[i] - logits[ranked[0]]) / params.temperature) for i in ranked}
    total = math.fsum(weights.values())
    probabilities = {i: weight / total for i, weight in weights.items()}
    kept, reached = [], 0.0
    for i in ranked:
        if reached >= params.top_p and params.top_p < 1:
            break
        reached += probabilities[i]
        if probabilities[i] >= params.min_p * probabilities[ranked[0]]:
            kept.append(i)
    mass = math.fsum(probabilities[i] for i in kept)
    return {i: probabilities[i] / mass for i in kept}


@given(
    logits=LOGITS,
    temperature=st.floats(0.1, 5),
    top_k=st.integers(0, 45),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0, 1),
)
@settings(max_examples=500)
def test_kept_tokens_and_probabilities(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ids, probabilities = keep(np.array(logits, dtype=np.float32), params)
    expected = _oracle(logits, params)
    found = dict(zip(ids.tolist(), probabilities.tolist(), strict=True))
    if set(found) != set(expected):  # only where a sum of probabilities meets top_p or min_p in its last bits
        ranked = _oracle(logits, SamplingParams(temperature=temperature, top_k=top_k))
        reached = np.cumsum(list(ranked.values()))
        shares = np.array(list(ranked.values())) / max(ranked.values())
        assert np.abs(reached - top_p).min() < 1e-7 or np.abs(shares - min_p).min() < 1e-7
        return
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_p": 0.6}, 2), ({"top_p": 0.4}, 1), ({"top_p": 0.8}, 3), ({"top_p": 0.9}, 4), ({"min_p": 0.3}, 2),
        ({"min_p": 0.2}, 4), ({"min_p": 1.0}, 1), ({"top_k": 3}, 3), ({"top_k": 3, "top_p": 0.6}, 2),
    ],
)  # fmt: skip
def test_how_many_tokens_stay(options: dict[str, float], kept: int) -> None:
    logits = np.log(np.array([0.125, 0.5, 0.125, 0.25], dtype=np.float32))
    ids, _ = keep(logits, SamplingParams(temperature=1.0, **options))  # type: ignore[arg-type]
    assert ids.tolist() == [1, 3, 0, 2][:kept]


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], dtype=np.float32))
    sample = make_sampler(SamplingParams(temperature=1.0, seed=0))
    counts = np.bincount([sample(logits, []) for _ in range(20_000)], minlength=4) / 20_000
    assert np.abs(counts - [0.5, 0.25, 0.125, 0.125]).max() < 0.015


@given(LOGITS, st.integers(0, 2**63 - 1))
def test_a_seed_repeats_and_greedy_needs_none(logits: list[float], seed: int) -> None:
    array = np.array(logits, dtype=np.float32)
    first, second = (make_sampler(SamplingParams(seed=seed)) for _ in range(2))
    assert [first(array, []) for _ in range(5)] == [second(array, []) for _ in range(5)]
    assert make_sampler(SamplingParams(temperature=0.0))(array, []) == array.argmax()


def test_repetition_penalty_lowers_only_what_was_seen() -> None:
    logits = np.array([2.0, -2.0, 3.0, 0.0], dtype=np.float32)
    assert penalise(logits, [0, 1, 1], 2.0).tolist() == [1.0, -4.0, 3.0, 0.0]
    assert logits.tolist() == [2.0, -2.0, 3.0, 0.0]
    assert make_sampler(SamplingParams(temperature=0.0, repetition_penalty=2.0))(logits, [2]) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 1.5), ("max_tokens", True), ("max_tokens", None),
        ("temperature", -0.1), ("temperature", 101), ("temperature", math.nan), ("temperature", math.inf),
        ("temperature", "hot"), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.01), ("top_p", math.nan), ("min_p", -0.1),
        ("min_p", 1.1), ("repetition_penalty", 0.0), ("repetition_penalty", -1.0), ("repetition_penalty", 11),
        ("seed", -1), ("seed", 1 << 63), ("stop", ""), ("stop", ["a", ""]), ("stop", [1]), ("stop", ["x"] * 17),
        ("stop", 5), ("ignore_eos", "no"), ("repetition_penalty", 1e-46),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"^{field}: "):
        SamplingParams(**{field: value})  # type: ignore[arg-type]
