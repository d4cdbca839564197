"""Prompts to fill in the middle: the order of their parts, where they end, and refusals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from numpy.typing import NDArray

from kiara_runtime.engine.runner import SequentialRunner
from kiara_runtime.errors import ContextError, UserError
from kiara_runtime.model import Model
from kiara_runtime.sampling import SamplingParams
from kiara_runtime.tokens.infill import _FORMS, infill_ids
from kiara_runtime.tokens.tokenizer import Tokenizer
from kiara_runtime.tokens.tokenizer_json import END_OF_TEXT

BYTES = [bytes([i]) for i in range(256)]


def _tokenizer(*special: str) -> Tokenizer:
    names = dict.fromkeys((END_OF_TEXT, *special))
    return Tokenizer.from_merges(BYTES, {name: 256 + i for i, name in enumerate(names)})


def _parts(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The ids as text, special tokens by name."""
    names = {id: name for name, id in tokenizer.special_tokens.items()}
    return "".join(names.get(id) or tokenizer.decode([id]) for id in ids)


@pytest.mark.parametrize(
    ("special", "expected"),
    [
        ("<|fim_prefix|> <|fim_middle|> <|fim_suffix|>", "<|fim_prefix|>ab<|fim_suffix|>cd<|fim_middle|>"),
        ("<fim_prefix> <fim_middle> <fim_suffix> <fim_pad>", "<fim_prefix>ab<fim_suffix>cd<fim_middle>"),
        ("<|fim▁begin|> <|fim▁hole|> <|fim▁end|>", "<|fim▁begin|>ab<|fim▁hole|>cd<|fim▁end|>"),
        ("▁<PRE> ▁<MID> ▁<SUF> ▁<EOT>", "▁<PRE>ab▁<SUF>cd▁<MID>"),
        ("[PREFIX] [SUFFIX]", "[SUFFIX]cd[PREFIX]ab"),
    ],
)
def test_each_family_has_its_order(special: str, expected: str) -> None:
    tokenizer = _tokenizer(*special.split())
    assert _parts(tokenizer, infill_ids(tokenizer, "ab", "cd")) == expected


def test_texts_that_name_special_tokens_stay_text() -> None:
    tokenizer = _tokenizer("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    ids = infill_ids(tokenizer, "<|fim_middle|>", "<|fim_prefix|>")
    assert [id for id in ids if id > 256] == [tokenizer.special_tokens[n] for n in _FORMS[0].__dict__.values() if n]


def _model(tokenizer: Tokenizer, answer: Sequence[int]) -> Model:
    """A model that writes `answer` after any prompt that ends with the last special token."""

    def begin() -> Callable[[Sequence[int]], NDArray[np.float32]]:
        written = iter(answer)

        def logits(ids: Sequence[int]) -> NDArray[np.float32]:
            rows = np.zeros((len(ids), tokenizer.vocab_size), dtype=np.float32)
            rows[-1, next(written)] = 9
            return rows

        return logits

    return Model(tokenizer, SequentialRunner(begin), 64, tokenizer.vocab_size, frozenset({256}), 256)


def test_the_middle_ends_where_another_file_or_gap_begins() -> None:
    tokenizer = _tokenizer("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>")
    separator = tokenizer.special_tokens["<|file_sep|>"]
    model = _model(tokenizer, [*b"mid", separator, *b"more"])
    found = model.generate("ab", suffix="cd", temperature=0, max_tokens=20)
    assert (found.text, found.finish_reason, found.prompt_tokens) == ("mid", "stop", 7)
    model = _model(tokenizer, [*b"mid", separator, *b"more"])
    found = model.generate("ab", suffix="cd", temperature=0, max_tokens=6, ignore_eos=True)
    assert found.text == "midmo"


def test_what_cannot_be_filled_in_is_refused(bundle: Path, kiara_run: Callable[..., Result]) -> None:
    able = _model(_tokenizer("[PREFIX]", "[SUFFIX]"), [])
    wrong: list[tuple[Any, str, type[UserError]]] = [([1, 2], "x", UserError), ("a", "x" * 80, ContextError)]
    for prompt, suffix, kind in wrong:
        with pytest.raises(kind):
            able.infill(prompt, suffix, SamplingParams())
    with pytest.raises(UserError, match="no special tokens for it"):
        _model(_tokenizer(), []).generate("a", suffix="b")
    result = kiara_run("generate", bundle, "-p", "x", "--suffix", "y")
    assert result.exit_code == 1 and result.stderr.startswith("Error: suffix: this model cannot fill in the middle")
    result = kiara_run("generate", bundle, "-p", "x", "--suffix", "y", "--chat")
    assert result.exit_code == 1 and "--chat" in result.stderr
