"""The sampler against slow, obvious definitions, and against the processors of `transformers`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers.generation import logits_process

from kiara_runtime.errors import UserError
from kiara_runtime.sampling import filters
from kiara_runtime.sampling.params import SamplingParams
from kiara_runtime.sampling.sampler import Sampler, TokenLogprob, token_logprob

Array = NDArray[Any]


@st.composite
def _logits(draw: st.DrawFn) -> Array:
    """From one token to several blocks of them, flat to steep, with many ties or none, some of them impossible."""
    size = draw(st.integers(1, 12) | st.integers(13, 3000))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    values = rng.standard_normal(size) * draw(st.sampled_from([0.0, 0.01, 1.0, 3.0, 30.0]))
    step = draw(st.sampled_from([0.0, 0.25, 1.0]))
    values = np.round(values / step) * step if step else values
    values[rng.random(size) < draw(st.sampled_from([0.0, 0.0, 0.5]))] = -np.inf
    values[rng.integers(size)] = 0.5
    return values.astype(np.float32)


def _reached(ranked: list[int], probabilities: dict[int, float], part: float) -> tuple[list[int], float]:
    """The first ids up to and with the one that reaches `part`, and how near another number of them came to it."""
    sums = np.cumsum([probabilities[i] for i in ranked])
    return ranked[: int((sums < part).sum()) + 1], float(np.abs(sums - part).min())


def _oracle(
    logits: Array, temperature: float, top_k: int = 0, typical_p: float = 1.0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[dict[int, float], float]:
    """Ids and probabilities as the papers define them, each step by a full sort; and how near a decision was."""
    margin = math.inf
    kept = [i for i in range(len(logits)) if logits[i] > -math.inf]
    if top_k:
        kept = sorted(kept, key=lambda i: (-logits[i], i))[:top_k]
    tempered = {i: (float(logits[i]) - float(logits.max())) / temperature for i in kept}

    def normalised() -> dict[int, float]:
        top = max(tempered[i] for i in kept)
        weights = {i: math.exp(tempered[i] - top) for i in kept}
        total = math.fsum(weights.values())
        return {i: weight / total for i, weight in weights.items()}

    if typical_p < 1:
        p = normalised()
        mean = math.fsum(p[i] * tempered[i] for i in kept)
        distance = {i: abs(tempered[i] - mean) for i in kept}
        kept, margin = _reached(sorted(kept, key=lambda i: (distance[i], i)), p, typical_p)
        levels = sorted({tempered[i] for i in p})  # of two, one above and one below the mean, a last bit decides
        gaps = np.diff(np.sort([abs(level - mean) for level in levels]))
        margin = min([margin, *gaps])
    if top_p < 1:
        kept, near = _reached(sorted(kept, key=lambda i: (-tempered[i], i)), normalised(), top_p)
        margin = min(margin, near)
    if min_p > 0:
        p = normalised()
        most = max(p.values())
        shares = {i: p[i] / most for i in kept}
        margin = min([margin, *(abs(share - min_p) for share in shares.values() if share != min_p)])
        kept = [i for i in kept if shares[i] >= min_p]
    return normalised(), margin


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
def test_the_same_tokens_stay_as_by_full_sorts(
    logits: Array, temperature: float, top_k: int, typical_p: float, top_p: float, min_p: float
) -> None:
    options = {"top_k": top_k, "typical_p": typical_p, "top_p": top_p, "min_p": min_p}
    expected, margin = _oracle(logits, temperature, **options)  # type: ignore[arg-type]
    assume(margin > 1e-9)  # else a last bit decides
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
def test_which_tokens_stay(options: dict[str, Any], kept: list[int]) -> None:
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
def test_filters_are_those_of_transformers(options: dict[str, Any], warpers: list[Any], scale: float) -> None:
    logits = (np.random.default_rng(0).standard_normal(5000) * scale).astype(np.float32)
    scores = torch.from_numpy(logits).double()[None]
    for warp in [logits_process.TemperatureLogitsWarper(float(options.get("temperature", 1.0))), *warpers]:
        scores = warp(torch.zeros((1, 1), dtype=torch.long), scores)
    expected = dict(enumerate(scores.softmax(-1)[0].tolist()))
    found = _kept(logits, **{"temperature": 1.0, **options})
    assert _possible(found) == pytest.approx(_possible(expected), rel=1e-9)
    assert 0 < len(found) < 5000 or not warpers


def test_the_repetition_penalty_is_that_of_transformers() -> None:
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
def test_a_temperature_of_almost_none_leaves_the_likeliest(temperature: float) -> None:
    logits = np.array([-3.0, 2.0, 1.5, 2.0, -np.inf], dtype=np.float32)
    for options in ({}, {"top_p": 0.9}, {"typical_p": 0.9}, {"min_p": 0.1}, {"top_k": 3}):
        assert _possible(_kept(logits, temperature, **options)) == {1: 0.5, 3: 0.5}  # type: ignore[arg-type]


@given(st.integers(1, 1500), st.integers(0, 1 << 32), st.floats(0, 1, exclude_max=True), st.floats(0, 1))
@example(1024, 0, math.nextafter(1, 0), 0.999)
@example(1024, 0, 0.0, 0.999)
def test_the_draw_finds_its_place(size: int, seed: int, uniform: float, zeros: float) -> None:
    rng = np.random.default_rng(seed)
    weights = np.exp(-30 * rng.random(size)) * (rng.random(size) >= zeros)
    weights[rng.integers(size)] = 1.0
    place = filters.pick(None, weights, uniform)
    above = math.fsum(weights[: place + 1]) / math.fsum(weights)
    assert weights[place] > 0
    assert math.fsum(weights[:place]) / math.fsum(weights) - 1e-12 <= uniform < above + 1e-12
    assert filters.pick(np.arange(size) * 3 + 1, weights, uniform) == place * 3 + 1


def test_a_last_bit_never_draws_what_has_no_weight() -> None:
    """The sum of a block and its last cumulated weight differ in about half of these."""
    for seed in range(40):
        weights = np.zeros(600)
        weights[10:200] = np.random.default_rng(seed).random(190)
        assert filters.pick(None, weights, math.nextafter(1, 0)) == 199


@pytest.mark.parametrize("part", ["top_p", "typical_p"])
def test_a_nucleus_can_reach_far(part: str) -> None:
    """Tokens so unlikely that the search stops short of them first, and yet so many that they are part of it."""
    logits = np.full(40_000, -13.0, dtype=np.float32)
    logits[5], logits[7:20], logits[20] = 0.0, -np.inf, -14.0
    options = {part: 0.95}
    expected, margin = _oracle(logits, 1.0, **options)  # type: ignore[arg-type]
    assert margin > 1e-9 and len(expected) > 1000
    assert _kept(logits, 1.0, **options) == pytest.approx(expected, rel=1e-9)


def _as_openai(logits: Array, params: SamplingParams, prompt: list[int], output: list[int]) -> Array:
    """The changes to the logits, from the whole history and token by token."""
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
def test_a_sequence_is_that_of_the_slow_sampler(
    seed: int, temperature: float, options: dict[str, Any], forced: set[int], allow: bool
) -> None:
    """Penalties count from nothing, tokens are recorded before the first call too, and a token takes one draw."""
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
def test_what_is_banned_or_not_allowed_is_never_chosen(logits: Array, data: st.DataObject) -> None:
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


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(bad: float, temperature: float) -> None:
    with pytest.raises(UserError, match="overflows"):
        Sampler(SamplingParams(temperature=temperature), [])(np.array([1.0, bad, 2.0], dtype=np.float32))


def _chi_square(counts: Array, probabilities: dict[int, float]) -> float:
    expected = np.array([probabilities.get(i, 0.0) for i in range(len(counts))]) * counts.sum()
    assert not counts[expected == 0].any()
    return float((np.square(counts - expected)[expected > 0] / expected[expected > 0]).sum())


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.2}, {"typical_p": 0.7}, {"top_k": 5, "top_p": 0.9}]
)
def test_frequencies_are_the_exact_probabilities(options: dict[str, Any]) -> None:
    logits = np.log(np.array([0.1, 0.3, 0.05, 0.25, 0.1, 0.2], dtype=np.float32))
    exact, _ = _oracle(logits, 0.9, **options)
    sampler = Sampler(SamplingParams(temperature=0.9, seed=1, **options), [])
    counts = np.bincount([sampler(logits) for _ in range(20_000)], minlength=6)
    assert len(exact) > 1
    assert _chi_square(counts, exact) < 20.5  # 99.9 % of draws by 5 degrees of freedom, the most here
    off, _ = _oracle(logits, 1.2, **options)  # and the test can tell
    assert set(off) != set(exact) or _chi_square(counts, off) > 20.5


@given(_logits(), st.integers(0, 2**63 - 1), st.integers(0, 3))
@settings(deadline=None)
def test_a_seed_repeats(logits: Array, seed: int, choice: int) -> None:
    first, second = (Sampler(SamplingParams(seed=seed), [], choice) for _ in range(2))
    assert [first(logits) for _ in range(5)] == [second(logits) for _ in range(5)]


def test_choices_and_seeds_differ() -> None:
    flat = np.zeros(1000, dtype=np.float32)
    given = [(seed, choice) for seed in (0, 1) for choice in range(3)]
    samplers = [Sampler(SamplingParams(seed=seed), [], choice) for seed, choice in given]
    texts = {tuple(sampler(flat) for _ in range(4)) for sampler in samplers}
    assert len(texts) == 6
    assert samplers[0](flat) == int(np.random.default_rng(0).random(5)[4] * 1000)  # choice 0 is the seed itself


def test_greedy_takes_the_first_of_equals() -> None:
    sampler = Sampler(SamplingParams(temperature=0.0, repetition_penalty=2.0), [2])
    assert sampler(np.array([2.0, -2.0, 3.0, 2.0], dtype=np.float32)) == 0


def test_logits_are_not_copied_where_nothing_changes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Array] = []
    keep = filters.keep
    monkeypatch.setattr(filters, "keep", lambda logits, *rest: (seen.append(logits), keep(logits, *rest))[1])
    logits = np.zeros(9, dtype=np.float32)
    for options in ({}, {"top_p": 0.5}, {"presence_penalty": 1.0}):
        Sampler(SamplingParams(**options), [1])(logits)  # type: ignore[arg-type]
    assert [each is logits for each in seen] == [True, True, False]


@given(_logits(), st.integers(0, 20), st.data())
@settings(deadline=None)
def test_logprobs_are_of_the_model_itself(logits: Array, top: int, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    expected = torch.from_numpy(logits).double().log_softmax(-1).numpy()
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:top]
    found = token_logprob(logits, token, top)
    assert (found.token, [i for i, _ in found.top]) == (token, ranked)
    assert found.logprob == pytest.approx(expected[token], abs=1e-12)
    assert [p for _, p in found.top] == pytest.approx(expected[ranked], abs=1e-12)


def test_a_logprob_is_plain() -> None:
    found = token_logprob(np.zeros(4, dtype=np.float32), 3, 2)
    assert found == TokenLogprob(3, pytest.approx(-math.log(4)), ((0, found.logprob), (1, found.logprob)))
    assert json.loads(json.dumps(dataclasses.asdict(found)))["token"] == 3


LARGE = "a" * ((1 << 20) + 1)
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1), ("max_tokens", 1.5), ("max_tokens", True), ("max_tokens", None), ("max_tokens", "5"),
        ("temperature", -0.1), ("temperature", 101), ("temperature", math.nan), ("temperature", math.inf),
        ("temperature", "hot"), ("temperature", None), ("temperature", 10**400), ("temperature", True),
        ("temperature", np.float32("nan")), ("temperature", np.ones((2, 2))), ("top_k", -2), ("top_k", np.bool_(True)),
        ("top_p", 0.0), ("top_p", 1.01),
        ("top_p", math.nan), ("min_p", -0.1), ("min_p", 1.1), ("typical_p", 0), ("typical_p", 1.5),
        ("typical_p", Fraction(1, 10**400)), ("repetition_penalty", 0.0), ("repetition_penalty", -1.0),
        ("repetition_penalty", 11), ("repetition_penalty", 1e-46), ("presence_penalty", 2.1),
        ("presence_penalty", -2.1), ("presence_penalty", math.nan), ("frequency_penalty", 2.1),
        ("frequency_penalty", -2.1), ("frequency_penalty", "1"), ("seed", -1), ("seed", 1 << 63), ("seed", 1.0),
        ("stop", ""), ("stop", ["a", ""]), ("stop", [1]), ("stop", ["x"] * 17), ("stop", 5), ("ignore_eos", "no"),
        ("logit_bias", {-1: 1}), ("logit_bias", {1: 101}), ("logit_bias", {1: -101}), ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: "1"}), ("logit_bias", {1: True}), ("logit_bias", {True: 1}), ("logit_bias", {1.0: 1}),
        ("logit_bias", {"": 1}), ("logit_bias", {"-1": 1}), ("logit_bias", {"1.0": 1}), ("logit_bias", {" 1": 1}),
        ("logit_bias", {"\u0661": 1}), ("logit_bias", {"9" * 5000: 1}), ("logit_bias", {1: 1, "1": 1}),
        ("logit_bias", 5), ("logit_bias", "ab"), ("logit_bias", [1, 2]), ("logit_bias", [(1, 2, 3)]),
        ("logit_bias", {None: 1}), ("logit_bias", {1 << 32: 1}),
        ("banned_tokens", [-1]), ("banned_tokens", [1.0]), ("banned_tokens", [True]), ("banned_tokens", ["1"]),
        ("banned_tokens", 5), ("banned_tokens", "5"), ("banned_tokens", b"5"), ("banned_tokens", {1: 2}),
        ("banned_tokens", np.array([[1, 2], [3, 4]])), ("banned_tokens", np.array(5)),
        ("stop_token_ids", [-1]), ("stop_token_ids", 5),
        ("stop_token_ids", [None]), ("logprobs", 21), ("logprobs", -1), ("logprobs", True), ("logprobs", 1.0),
        ("prompt_logprobs", 1), ("prompt_logprobs", None), ("speculate", "yes"), ("speculate", 0),
        ("json_schema", ""), ("json_schema", "{"), ("json_schema", "[]"), ("json_schema", "true"), ("json_schema", 5),
        ("json_schema", b"{}"), ("json_schema", ["a"]), ("json_schema", {"a": object()}), ("json_schema", DEEP),
        ("json_schema", {"a": math.inf}), ("json_schema", {"a": LARGE}), ("json_schema", {"a": "\ud800"}),
        ("regex", ""), ("regex", 5), ("regex", LARGE), ("regex", "\ud800"), ("regex", "\u00e9" * (1 << 19) + "a"),
        ("grammar", ""), ("grammar", b"a"), ("grammar", LARGE),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"^{field}(\[[^ ]+\])?: .+; give [^\n]+$") as raised:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize(
    ("field", "value", "stored"),
    [
        ("max_tokens", 0, 0), ("max_tokens", np.int64(3), 3), ("temperature", np.float32(0.5), 0.5),
        ("temperature", 0, 0.0), ("top_p", 1, 1.0), ("typical_p", Fraction(1, 2), 0.5), ("presence_penalty", -2, -2.0),
        ("frequency_penalty", 2, 2.0), ("seed", np.uint64(7), 7), ("logit_bias", None, ()), ("logit_bias", {}, ()),
        ("logit_bias", {"12": 1, 3: np.float32(-100)}, ((3, -100.0), (12, 1.0))), ("banned_tokens", None, ()),
        ("banned_tokens", [5, np.int32(2), 5], (2, 5)), ("banned_tokens", np.array([7]), (7,)),
        ("stop_token_ids", {3, 1}, (1, 3)), ("stop", None, ()), ("stop", "a", ("a",)), ("stop", ["b", "a"], ("b", "a")),
        ("logprobs", 0, 0), ("logprobs", np.int8(20), 20), ("logprobs", None, None),
        ("json_schema", {"b": "\u00e9", "a": 1}, '{"b": "\u00e9", "a": 1}'), ("json_schema", ' {"a":1}', ' {"a":1}'),
        ("json_schema", {}, "{}"), ("regex", "\u00e9" * (1 << 19), "\u00e9" * (1 << 19)),
        ("grammar", 'start: "a"', 'start: "a"'),
    ],
)  # fmt: skip
def test_values_are_stored_plain_and_for_good(field: str, value: object, stored: object) -> None:
    params = SamplingParams(**{field: value})  # type: ignore[arg-type]
    found = getattr(params, field)
    assert found == stored and type(found) is type(stored)
    again = dataclasses.replace(params)
    assert again == params and hash(again) == hash(params)
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("fields", [("json_schema", "regex"), ("json_schema", "grammar"), ("regex", "grammar")])
def test_one_constraint_at_most(fields: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=f"^{fields[1]}: {fields[0]} is given, too"):
        SamplingParams(**dict.fromkeys(fields, "{}"))  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["logit_bias", "banned_tokens", "stop_token_ids"])
def test_ids_beyond_the_vocabulary_are_refused(field: str) -> None:
    params = SamplingParams(**{field: {2: 1.0, 7: 1.0} if field == "logit_bias" else [2, 7]})  # type: ignore[arg-type]
    params.check_vocabulary(8)
    with pytest.raises(UserError, match=f"^{field}: the vocabulary has no token 7; give ids below 7$"):
        params.check_vocabulary(7)


def test_a_ban_on_everything_is_refused() -> None:
    SamplingParams(banned_tokens=(0, 1)).check_vocabulary(3)
    with pytest.raises(UserError, match=r"^banned_tokens: all 3 tokens are banned"):
        SamplingParams(banned_tokens=(0, 1, 2)).check_vocabulary(3)


def test_every_field_says_what_it_is() -> None:
    assert all(len(field.metadata["help"]) > 20 for field in dataclasses.fields(SamplingParams))
    assert SamplingParams().seed != SamplingParams().seed
