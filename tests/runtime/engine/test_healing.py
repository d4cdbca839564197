"""A prompt that ends inside a token continues as if it were not cut there; at a token boundary nothing changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiara_runtime.engine.runner import SequentialRunner
from kiara_runtime.loading import load
from kiara_runtime.model import Model
from kiara_runtime.tokens.tokenizer import Tokenizer

WORDS = [b"ab", b"abc", b"abcd", b"de"]
AB, ABC, ABCD, DE = range(256, 260)
END = 260


def _model(likely: Callable[[Sequence[int]], int]) -> Model:
    """A model whose likeliest next token is a function of the tokens so far."""
    tokenizer = Tokenizer.from_merges([*(bytes([i]) for i in range(256)), *WORDS], {"<|endoftext|>": END})

    def begin() -> Callable[[Sequence[int]], np.ndarray]:
        past: list[int] = []

        def advance(ids: Sequence[int]) -> np.ndarray:
            rows = []
            for token in ids:
                past.append(token)
                rows.append(np.eye(261, dtype=np.float32)[likely(past)] * 20)
            return np.array(rows)

        return advance

    return Model(tokenizer, SequentialRunner(begin), 64, 261, frozenset({END}), END)


def test_a_prompt_that_ends_inside_a_token_is_healed() -> None:
    """The model continues "x" with "abcd". After the prompt "xab" only the rest of that token is output."""
    model = _model(lambda past: {ord("x"): ABCD, ABCD: DE}.get(past[-1], END))
    found = model.generate("xab", max_tokens=9, temperature=0.0)
    assert (found.text, found.tokens, found.prompt_tokens) == ("cdde", [ABCD, DE], 1)
    assert model.generate("xab", max_tokens=1, temperature=0.0).text == "cd"
    plain = model.generate("xab", max_tokens=9, temperature=0.0, token_healing=False)
    assert (plain.text, plain.tokens, plain.prompt_tokens) == ("", [], 2)
    assert model.generate(model.tokenize("xab"), max_tokens=9, temperature=0.0).tokens == []


def test_a_banned_token_is_not_used_for_healing() -> None:
    model = _model(lambda past: {ord("x"): ABCD, ABCD: DE}.get(past[-1], END))
    assert model.generate("xab", max_tokens=9, temperature=0.0, banned_tokens=[ABCD]).tokens in ([], [ABC])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), temperature=st.sampled_from([0.0, 0.7, 1.3]), length=st.integers(4, 60))
def test_healing_changes_nothing_at_a_token_boundary(
    boundaries: tuple[Model, str], seed: int, temperature: float, length: int
) -> None:
    model, text = boundaries
    options: dict[str, Any] = {"max_tokens": 12, "temperature": temperature, "seed": seed, "ignore_eos": True}
    prompt = text[:length]
    healed, plain = (model.generate(prompt, token_healing=on, **options) for on in (True, False))
    if healed.prompt_tokens == plain.prompt_tokens:  # the last token was kept
        assert (healed.tokens, healed.text) == (plain.tokens, plain.text)
    else:
        whole = model.detokenize(model.tokenize(prompt)[:-1]) + model.detokenize(healed.tokens)
        assert whole == prompt + healed.text


@pytest.fixture(scope="module")
def boundaries(bundle: Any) -> tuple[Model, str]:
    return load(bundle), "import os\n\ndef main(argv):\n    return os.path.join(argv[0], 'x')\n"


def test_healing_is_the_same_alone_in_a_batch_and_streamed(boundaries: tuple[Model, str]) -> None:
    model, text = boundaries
    prompts = [text[:length] for length in range(5, 61, 7)]
    alone = [model.generate(prompt, max_tokens=8, temperature=0.0) for prompt in prompts]
    together = [one for (one,) in model.generate_all(prompts, max_tokens=8, temperature=0.0)]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert ["".join(p.text for p in model.stream(prompt, max_tokens=8, temperature=0.0)) for prompt in prompts] == [
        one.text for one in alone
    ]
