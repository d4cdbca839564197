"""Grammars that cannot be used, and tokens that a grammar refuses."""

from __future__ import annotations

import gc
import json
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import llguidance
import numpy as np
import pytest
from constraints import SCHEMAS, _constrain, _eos, _tokenizer, _write

from kiara_runtime.errors import UserError
from kiara_runtime.sampling.grammar.constraint import MAX_CHARACTERS, constrain
from kiara_runtime.sampling.grammar.vocabulary import vocabulary_of
from kiara_runtime.tokens.tokenizer import Tokenizer


@pytest.mark.parametrize("style", ["own", "qwen"])
def test_a_disallowed_token_is_refused_and_changes_nothing(style: str) -> None:
    tokenizer = _tokenizer(style)
    constraint = _constrain(tokenizer, regex="xy")
    [end, padding_end] = sorted(_eos(tokenizer))
    [x], [y] = tokenizer.encode("x"), tokenizer.encode("y")
    special = max(tokenizer.special_tokens.values())
    for wrong in (y, end, padding_end, special, -1, padding_end - 1, padding_end + 1, 1 << 40):
        with pytest.raises(ValueError, match="does not allow it"):
            constraint.accept(wrong)
    constraint.accept(x)
    constraint.accept(y)
    assert constraint.finished
    for wrong in (x, padding_end - 1):
        with pytest.raises(ValueError, match="does not allow it"):
            constraint.accept(wrong)
    constraint.accept(end)
    constraint.accept(padding_end)
    assert constraint.finished and constraint.forced() == []


def test_an_end_of_text_token_that_has_text_only_ends_the_text() -> None:
    tokenizer = _tokenizer("own")
    eos = frozenset({ord("b")})
    constraint = constrain(tokenizer, tokenizer.vocab_size, eos, regex="ab?[cd]?")
    assert constraint.forced() == [ord("a")]
    constraint.accept(ord("a"))
    assert np.flatnonzero(constraint.allowed()).tolist() == [ord("b"), ord("c"), ord("d")]
    constraint.accept(ord("b"))
    assert constraint.finished
    with pytest.raises(UserError, match="this model's tokens"):
        constrain(tokenizer, tokenizer.vocab_size, eos, regex="b")


BAD = [
    ("json_schema", "{", "not JSON"),
    ("json_schema", "", "not JSON"),
    ("json_schema", "[1]", "object"),
    ("json_schema", "true", "object"),
    ("json_schema", '{"type": "objec"}', "objec"),
    ("json_schema", '{"type": "\\u001b[31m\\u0007"}', "cannot be used"),
    ("json_schema", '{"enum": ["\\ud800"]}', "surrogate"),
    ("json_schema", '{"type": "string", "pattern": "("}', "pattern: '('"),
    ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "minimum"),
    ("json_schema", '{"$ref": "https://example.com/schema"}', "example.com"),
    ("json_schema", '{"$ref": "#/$defs/none"}', "none"),
    ("json_schema", '{"not": {"type": "string"}}', "not"),
    ("json_schema", '{"a":' * 5000 + "1" + "}" * 5000, "levels deep"),
    ("json_schema", "\ud800", "ud800"),
    ("json_schema", '{"default": 1e999}', "1e999"),
    ("json_schema", f'{{"default": {10**400}}}', "100000"),
    ("json_schema", '{"maximum": NaN}', "NaN"),
    ("json_schema", '{"items":' * 120 + "{}" + "}" * 120, "levels deep"),
    ("json_schema", '{"items":' * 400 + "{}" + "}" * 400, "levels deep"),
    ("json_schema", '{"$ref": "#/default/a", "default": {"a": {"const": -9223372036854775808}}}', ".default.a.const"),
    ("regex", "(", "unclosed"),
    ("regex", "a" * 500 + "(", "unclosed"),
    ("regex", "(?=a)b", "look-ahead"),
    ("regex", r"\bword", "lookaround"),
    ("regex", r"[^\s\S]", "tokens"),
    ("regex", "\ud800", "surrogates"),
    ("grammar", "", "start"),
    ("grammar", "start: x", "unknown name"),
    ("grammar", 'begin: "a"', "start"),
    ("grammar", "start: <|endoftext|>", "special token"),
    ("grammar", "start: <[100000]>", "too large"),
    ("grammar", 'start: %json {"type": "objec"}', "objec"),
    ("grammar", 'start: "a" %json {"items": {"const": -9223372036854775808}}', ".items.const"),
    ("grammar", 'start: %json{"x-guidance": {"lenient": true}, "not": {}}', ".not"),
    ("grammar", '{"grammars": []}', "grammar"),
    ("grammar", 'start: A\nA: "a" & "b"', "tokens"),
]


@pytest.mark.parametrize(("field", "text", "reason"), BAD, ids=[f"{field}-{text:.20}" for field, text, _ in BAD])
def test_an_invalid_grammar_is_refused_by_its_field(
    field: str, text: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=rf"^{field}[^ ]*: ") as caught:
        _constrain(_tokenizer("own"), **{field: text})
    message = str(caught.value)
    assert reason in message and len(message) <= 300 and message.isprintable()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("grammar", ['start: "a"{1000000000}', "start: /a{1000000000}/"])
def test_limits_reached_during_generation_raise_user_error(grammar: str, capfd: pytest.CaptureFixture[str]) -> None:
    constraint = _constrain(_tokenizer("own"), grammar=grammar)
    with pytest.raises(UserError, match=r"^grammar: "):
        for token in constraint.forced():
            constraint.accept(token)
    with pytest.raises(UserError, match=r"^grammar: "):
        constraint.allowed()
    assert capfd.readouterr() == ("", "")


def _arrays(levels: int, within: str) -> dict[str, Any]:
    return {"items": _arrays(levels - 1, within)} if levels else {"$ref": within}


_NESTED = {f"a{i}": f"{'(' * 24}a{i + 1}{')' * 24}" for i in range(500)}


_ARRAYS: dict[str, Any] = {f"a{i}": _arrays(40, f"#/$defs/a{i + 1}") for i in range(50)} | {"a50": {"type": "null"}}


_RULES = {f"a{i:x}": f"a{i + 1:x}" for i in range(3000)}


DEEP = {
    "rules": {"grammar": "\n".join(f"{a}:{b}" for a, b in {"start": "a0", **_RULES, "abb8": '"x"'}.items())},
    "parentheses": {"grammar": "\n".join(f"{a}:{b}" for a, b in {"start": "a0", **_NESTED, "a500": '"x"'}.items())},
    "items": {"json_schema": json.dumps({"$ref": "#/$defs/a0", "$defs": _ARRAYS}, separators=(",", ":"))},
}


@pytest.mark.parametrize("name", DEEP)
def test_long_chains_of_rules_do_not_crash_the_process(name: str) -> None:
    """llguidance would overflow the stack of an ordinary thread."""
    tokenizer = _tokenizer("own")
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(lambda: _write(tokenizer, _constrain(tokenizer, **DEEP[name]), 1, True)).result()
    assert text == "x" if "grammar" in DEEP[name] else json.loads(text) is not ...


def test_an_oversized_grammar_is_refused() -> None:
    with pytest.raises(UserError, match=r"regex: .* it has more than 32768 characters"):
        _constrain(_tokenizer("own"), regex="x" * (MAX_CHARACTERS + 1))


def test_token_ids_in_a_grammar_exclude_special_tokens() -> None:
    tokenizer = _tokenizer("own")
    allowed = _constrain(tokenizer, grammar="start: <[*]>").allowed()
    assert allowed[:255].all() and not allowed[min(tokenizer.special_tokens.values()) :].any()
    special = tokenizer.special_tokens["<|tool|>"]
    with pytest.raises(UserError, match="this model's tokens"):
        _constrain(tokenizer, grammar=f"start: <[{special}]>")


def test_exactly_one_grammar_is_required() -> None:
    for given_ in ({}, {"regex": "a", "grammar": 'start: "a"'}):
        with pytest.raises((AssertionError, ValueError)):
            _constrain(_tokenizer("own"), **given_)


def test_without_llguidance_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match=r"^regex: .*kiara-runtime\[structured\]"):
        _constrain(_tokenizer("own"), regex="a")


@pytest.mark.parametrize("style", ["llama3", "qwen"])
def test_threads_share_one_vocabulary_and_do_not_disturb_each_other(style: str) -> None:
    made = _tokenizer(style)
    tokenizer = Tokenizer(made.definition, made.config)  # one that no other test has used
    schema = SCHEMAS[0]

    def work(seed: int) -> str:
        return _write(tokenizer, _constrain(tokenizer, json_schema=json.dumps(schema)), seed, follow=seed % 2 == 0)

    with ThreadPoolExecutor(4) as pool:
        vocabularies = set(map(id, pool.map(vocabulary_of, [tokenizer] * 8)))
        texts = list(pool.map(work, range(16)))
    assert len(vocabularies) == 1 and texts == [work(seed) for seed in range(16)]


def test_a_vocabulary_is_freed_with_its_tokenizer() -> None:
    made = _tokenizer("own")
    tokenizer = Tokenizer(made.definition, made.config)
    constraint, alive = _constrain(tokenizer, regex="name 12"), weakref.ref(tokenizer)
    vocabulary = weakref.ref(vocabulary_of(tokenizer))
    del tokenizer
    gc.collect()
    assert alive() is None and vocabulary() is None
    assert _write(made, constraint, 0, follow=True) == "name 12"


def test_a_grammar_is_compiled_once_and_leaves_the_thread_stack_size_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each choice of a request has its own position in it."""
    compiled, before = [0], threading.stack_size()
    matcher = llguidance.LLMatcher

    def counted(*given: Any, **options: Any) -> Any:
        compiled[0] += 1
        return matcher(*given, **options)

    monkeypatch.setattr(llguidance, "LLMatcher", counted)
    tokenizer = Tokenizer.from_merges([bytes([i]) for i in range(256)], {"<|endoftext|>": 256})
    first, second = (constrain(tokenizer, 257, frozenset({256}), regex="ab?c{7}") for _ in range(2))
    first.accept(ord("a"))
    assert compiled == [1] and threading.stack_size() == before
    assert second.allowed()[ord("a")] and not first.allowed()[ord("a")] and first.allowed()[ord("b")]
