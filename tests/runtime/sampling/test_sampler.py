"""The sampler: penalties, bias, bans, seeds and log-probabilities."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_oracles import Array, _logits, _oracle

from kiara_runtime.errors import UserError
from kiara_runtime.sampling import filters
from kiara_runtime.sampling.params import SamplingParams
from kiara_runtime.sampling.sampler import Sampler, TokenLogprob, token_logprob


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_non_finite_logits_are_refused(bad: float, temperature: float) -> None:
    with pytest.raises(UserError, match="overflows"):
        Sampler(SamplingParams(temperature=temperature), [])(np.array([1.0, bad, 2.0], dtype=np.float32))


def _chi_square(counts: Array, probabilities: dict[int, float]) -> float:
    expected = np.array([probabilities.get(i, 0.0) for i in range(len(counts))]) * counts.sum()
    assert not counts[expected == 0].any()
    return float((np.square(counts - expected)[expected > 0] / expected[expected > 0]).sum())


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.2}, {"typical_p": 0.7}, {"top_k": 5, "top_p": 0.9}]
)
def test_sampled_frequencies_match_the_probabilities(options: dict[str, Any]) -> None:
    logits = np.log(np.array([0.1, 0.3, 0.05, 0.25, 0.1, 0.2], dtype=np.float32))
    exact, _ = _oracle(logits, 0.9, **options)
    sampler = Sampler(SamplingParams(temperature=0.9, seed=1, **options), [])
    counts = np.bincount([sampler(logits) for _ in range(20_000)], minlength=6)
    assert len(exact) > 1
    assert _chi_square(counts, exact) < 20.5  # 99.9 % quantile for 5 degrees of freedom, the most here
    off, _ = _oracle(logits, 1.2, **options)  # the test detects a wrong temperature
    assert set(off) != set(exact) or _chi_square(counts, off) > 20.5


@given(_logits(), st.integers(0, 2**63 - 1), st.integers(0, 3))
@settings(deadline=None)
def test_a_seed_repeats_its_tokens(logits: Array, seed: int, choice: int) -> None:
    first, second = (Sampler(SamplingParams(seed=seed), [], choice) for _ in range(2))
    assert [first(logits) for _ in range(5)] == [second(logits) for _ in range(5)]


def test_different_choices_and_seeds_give_different_tokens() -> None:
    flat = np.zeros(1000, dtype=np.float32)
    given = [(seed, choice) for seed in (0, 1) for choice in range(3)]
    samplers = [Sampler(SamplingParams(seed=seed), [], choice) for seed, choice in given]
    texts = {tuple(sampler(flat) for _ in range(4)) for sampler in samplers}
    assert len(texts) == 6
    assert samplers[0](flat) == int(np.random.default_rng(0).random(5)[4] * 1000)  # choice 0 uses the seed itself


def test_greedy_takes_the_first_of_equal_logits() -> None:
    sampler = Sampler(SamplingParams(temperature=0.0, repetition_penalty=2.0), [2])
    assert sampler(np.array([2.0, -2.0, 3.0, 2.0], dtype=np.float32)) == 0


def test_logits_are_copied_only_when_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Array] = []
    keep = filters.keep
    monkeypatch.setattr(filters, "keep", lambda logits, *rest: (seen.append(logits), keep(logits, *rest))[1])
    logits = np.zeros(9, dtype=np.float32)
    for options in ({}, {"top_p": 0.5}, {"presence_penalty": 1.0}):
        Sampler(SamplingParams(**options), [1])(logits)  # type: ignore[arg-type]
    assert [each is logits for each in seen] == [True, True, False]


@given(_logits(), st.integers(0, 20), st.data())
@settings(deadline=None)
def test_logprobs_come_from_the_unmodified_logits(logits: Array, top: int, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    expected = torch.from_numpy(logits).double().log_softmax(-1).numpy()
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:top]
    found = token_logprob(logits, token, top)
    assert (found.token, [i for i, _ in found.top]) == (token, ranked)
    assert found.logprob == pytest.approx(expected[token], abs=1e-12)
    assert [p for _, p in found.top] == pytest.approx(expected[ranked], abs=1e-12)


def test_a_logprob_is_json_serialisable() -> None:
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
def test_invalid_values_are_refused_by_field(field: str, value: object) -> None:
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
def test_values_are_stored_as_immutable_plain_types(field: str, value: object, stored: object) -> None:
    params = SamplingParams(**{field: value})  # type: ignore[arg-type]
    found = getattr(params, field)
    assert found == stored and type(found) is type(stored)
    again = dataclasses.replace(params)
    assert again == params and hash(again) == hash(params)
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("fields", [("json_schema", "regex"), ("json_schema", "grammar"), ("regex", "grammar")])
def test_only_one_grammar_is_allowed(fields: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=f"^{fields[1]}: {fields[0]} is given too"):
        SamplingParams(**dict.fromkeys(fields, "{}"))  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["logit_bias", "banned_tokens", "stop_token_ids"])
def test_ids_beyond_the_vocabulary_are_refused(field: str) -> None:
    params = SamplingParams(**{field: {2: 1.0, 7: 1.0} if field == "logit_bias" else [2, 7]})  # type: ignore[arg-type]
    params.check_vocabulary(8)
    with pytest.raises(UserError, match=f"^{field}: the vocabulary has no token 7; give ids below 7$"):
        params.check_vocabulary(7)


def test_banning_all_tokens_is_refused() -> None:
    SamplingParams(banned_tokens=(0, 1)).check_vocabulary(3)
    with pytest.raises(UserError, match=r"^banned_tokens: all 3 tokens are banned"):
        SamplingParams(banned_tokens=(0, 1, 2)).check_vocabulary(3)


def test_every_field_has_a_help_text() -> None:
    assert all(len(field.metadata["help"]) > 20 for field in dataclasses.fields(SamplingParams))
    assert SamplingParams().seed != SamplingParams().seed
