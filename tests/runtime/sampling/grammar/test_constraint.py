"""Random models held to a grammar: what they write is checked by Python's json, a small schema check and re."""

from __future__ import annotations

import gc
import json
import re
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import llguidance
import numpy as np
import pytest
from families import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from kiara_runtime.errors import UserError
from kiara_runtime.sampling.grammar.constraint import MAX_CHARACTERS, Constraint, constrain
from kiara_runtime.sampling.grammar.vocabulary import MAX_TOKEN_BYTES, vocabulary_of
from kiara_runtime.tokens.tokenizer import MAX_WHITE_SPACE, Tokenizer
from kiara_runtime.tokens.tokenizer_json import END_OF_TEXT, byte_characters

TEXTS = [
    '{"name": "Zoë", "age": 12, "tags": ["a", "b"], "null": null}\n',
    "yes or no, true and false: 東京, naïve café",
] * 9
PADDING = 7  # ids of the model that the tokenizer does not have
LOST = {0x04, 0x06, *range(0x80, 0x90), 0xF1, 0xF2}  # bytes that are no token of "lossy"
STYLES = ["own", "llama3", "smollm", "qwen", "lossy"]


@cache
def _tokenizer(style: str) -> Tokenizer:
    """By tiktoken, the first three; by `tokenizers` with a normaliser, "qwen", or with bytes missing, "lossy"."""
    if style == "own":
        tokens = [bytes([byte]) for byte in range(256)] + [b'{"', b'":', b" n", b"na", b"am", b"ame", b"name", b"12"]
        return Tokenizer.from_merges(tokens, {END_OF_TEXT: len(tokens), "<|tool|>": len(tokens) + 1})
    definition = json.loads(make_tokenizer("smollm" if style == "lossy" else style, TEXTS).to_str())
    if style == "lossy":
        lost = {byte_characters()[byte] for byte in LOST}
        model = definition["model"]
        model["vocab"] = {name: i for name, i in model["vocab"].items() if not lost & set(name)}
        model["merges"] = [pair for pair in model["merges"] if not lost & set("".join(pair))]
    return Tokenizer(definition, {})


def _size(tokenizer: Tokenizer) -> int:
    return tokenizer.vocab_size + PADDING


def _eos(tokenizer: Tokenizer) -> frozenset[int]:
    """Two ends of text, one of them no id of the tokenizer's."""
    return frozenset({tokenizer.special_tokens[END_OF_TEXT], _size(tokenizer) - 1})


def _constrain(tokenizer: Tokenizer, **grammar: str) -> Constraint:
    return constrain(tokenizer, _size(tokenizer), _eos(tokenizer), **grammar)


def _write(tokenizer: Tokenizer, constraint: Constraint, seed: int, follow: bool) -> str:
    """What a random model writes, forced tokens first where `follow`; checks each mask on the way."""
    draw, size, eos = np.random.default_rng(seed), _size(tokenizer), sorted(_eos(tokenizer))
    never = [i for i in range(size) if i not in eos and (i >= tokenizer.vocab_size or not tokenizer.token_bytes[i])]
    ids: list[int] = []
    while not constraint.finished:
        assert len(ids) < 5000
        forced = constraint.forced()
        assert not forced or np.flatnonzero(constraint.allowed()).tolist() == forced[:1]
        for token in forced if follow else []:
            constraint.accept(token)
            ids.append(token)
        allowed = constraint.allowed()
        assert allowed.shape == (size,) and allowed.any() and not allowed[never].any()
        assert len(set(allowed[eos])) == 1
        if constraint.finished:
            break
        logits = draw.normal(size=size)
        logits[eos] += 2
        token = int(np.where(allowed, logits, -np.inf).argmax())
        constraint.accept(token)
        if token in eos:
            break
        ids.append(token)
    assert constraint.finished and constraint.forced() == [] and np.flatnonzero(constraint.allowed()).tolist() == eos
    return b"".join(tokenizer.token_bytes[i] for i in ids).decode("utf-8")


def _object(properties: dict[str, Any], *optional: str, **more: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **more}


SHORT = {"type": "string", "maxLength": 6}
SCHEMAS: list[dict[str, Any]] = [
    _object({"name": SHORT, "age": {"type": "integer", "minimum": 0, "maximum": 150}}),
    _object({"a": {"type": "boolean"}, "b": {"type": "null"}, "c": SHORT}, "a", "c"),
    {"type": "array", "items": {"enum": ["x", 1, None, True, "Zoë", {"k": [1]}]}, "minItems": 2, "maxItems": 4},
    {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2.25},
    {"type": "integer", "exclusiveMinimum": -13, "maximum": 7},
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"type": "string", "pattern": "^[A-Z]{2}[0-9]+(-é)?$"},
    {"enum": ["<|im_end|>", "<|endoftext|>", "a\u0004b", '"\\/\n']},
    {"const": {"naïve": [1.5, "東京", False]}},
    {"anyOf": [{"type": "integer", "minimum": 3, "maximum": 5}, _object({"k": {"const": "v"}}), {"type": "null"}]},
    _object(
        {
            "inner": _object({"list": {"type": "array", "items": SHORT, "maxItems": 2}, "deep": _object({"z": SHORT})}),
            "日本": {"$ref": "#/$defs/level"},
        },
        "日本",
        **{"$defs": {"level": {"enum": ["low", "high"]}}},
    ),
]


def _fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether a value satisfies a schema, of the keywords in SCHEMAS."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return any(_fits(value, option, root) for option in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        options = schema.get("enum", [schema.get("const")])
        return any(type(value) is type(option) and value == option for option in options)
    return _CHECKS[schema["type"]](value, schema, root)


def _number_fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    fits = isinstance(value, int if schema["type"] == "integer" else (int, float)) and not isinstance(value, bool)
    fits = fits and schema.get("minimum", -1e9) <= value <= schema.get("maximum", 1e9)
    return fits and schema.get("exclusiveMinimum", -1e9) < value < schema.get("exclusiveMaximum", 1e9)


def _string_fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    fits = isinstance(value, str) and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 99)
    return fits and bool(re.search(schema.get("pattern", ""), value))


def _array_fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    fits = isinstance(value, list) and schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 99)
    return fits and all(_fits(item, schema["items"], root) for item in value)


def _object_fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    fits = isinstance(value, dict) and set(schema["required"]) <= value.keys() <= schema["properties"].keys()
    return fits and all(_fits(item, schema["properties"][name], root) for name, item in value.items())


_CHECKS: dict[str, Callable[[Any, dict[str, Any], dict[str, Any]], bool]] = {
    "integer": _number_fits,
    "number": _number_fits,
    "string": _string_fits,
    "array": _array_fits,
    "object": _object_fits,
    "boolean": lambda value, schema, root: isinstance(value, bool),
    "null": lambda value, schema, root: value is None,
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_any_model_writes_json_of_the_schema(schema: dict[str, Any], style: str) -> None:
    tokenizer = _tokenizer(style)
    for seed in range(6):
        text = _write(tokenizer, _constrain(tokenizer, json_schema=json.dumps(schema)), seed, follow=seed % 2 == 0)
        assert _fits(json.loads(text), schema, schema), text


REGEXES = [
    "",
    "a?",
    "(yes|no|maybe)( indeed){0,2}",
    r"\d{4}-\d{2}-\d{2}",
    r"[^a]\s[é-ü日-本]{2}",
    r"^[a-z ]{3,20}\.$",
    r"[^\s\S]?x/y\\\n\t\"",
    r"(?i)naïve? (東|京){1,3}",
    r"<\|im_end\|>|<\|endoftext\|>[ab]",
    r"(?s).{5,9}",
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("regex", REGEXES)
def test_any_model_writes_a_match_of_the_expression(regex: str, style: str) -> None:
    tokenizer = _tokenizer(style)
    for seed in range(6):
        text = _write(tokenizer, _constrain(tokenizer, regex=regex), seed, follow=seed % 2 == 0)
        assert re.fullmatch(regex, text), text


@pytest.mark.parametrize("style", STYLES)
def test_any_model_writes_what_the_lark_grammar_says(style: str) -> None:
    tokenizer = _tokenizer(style)
    grammar = """
        start: sum
        sum: part (OPERATOR part){0,3}
        part: NUMBER | "(" NUMBER OPERATOR NUMBER ")"
        OPERATOR: " + " | " * "
        NUMBER: /[1-9][0-9]{0,2}/
    """
    for seed in range(12):
        text = _write(tokenizer, _constrain(tokenizer, grammar=grammar), seed, follow=seed % 2 == 0)
        part = r"(\d{1,3}|\(\d{1,3} [+*] \d{1,3}\))"
        assert re.fullmatch(rf"{part}( [+*] {part}){{0,3}}", text) and eval(text) > 0, text  # noqa: S307


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(st.characters(codec="utf-8"), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.lists(VALUES, min_size=1, max_size=4), st.sampled_from(["own", "llama3", "smollm", "qwen"]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_choice_of_values_is_kept_to(values: list[Any], style: str, follow: bool) -> None:
    tokenizer = _tokenizer(style)
    constraint = _constrain(tokenizer, json_schema=json.dumps({"enum": values}))
    chosen = json.loads(_write(tokenizer, constraint, len(values), follow))
    assert json.dumps(chosen, sort_keys=True) in [json.dumps(value, sort_keys=True) for value in values]


def _language(tokenizer: Tokenizer, follow: bool, **grammar: str) -> set[str]:
    """Every text that the masks let a model write."""
    texts: set[str] = set()
    seen: set[bytes] = set()
    paths: list[list[int]] = [[]]
    while paths:
        path = paths.pop()
        constraint = _constrain(tokenizer, **grammar)
        for token in path:
            constraint.accept(token)
        path += constraint.forced() if follow else []
        written = b"".join(tokenizer.token_bytes[i] for i in path)
        if written in seen:  # how it was spelled makes no difference to a grammar
            continue
        seen.add(written)
        constraint = _constrain(tokenizer, **grammar)
        for token in path:
            constraint.accept(token)
        allowed = constraint.allowed()
        if allowed[sorted(_eos(tokenizer))].any():
            texts.add(written.decode("utf-8"))
        paths += [[*path, int(i)] for i in np.flatnonzero(allowed) if i not in _eos(tokenizer)]
    return texts


@pytest.mark.parametrize("style", ["own", "llama3", "qwen"])
@pytest.mark.parametrize("follow", [False, True], ids=["free", "forced"])
def test_a_model_can_write_all_of_the_language_and_no_more(style: str, follow: bool) -> None:
    tokenizer = _tokenizer(style)
    assert _language(tokenizer, follow, regex="(yes|no|name)?( [12é]){0,2}") == {
        word + rest
        for word in ("", "yes", "no", "name")
        for rest in ["", *(f" {a}" for a in "12é"), *(f" {a} {b}" for a in "12é" for b in "12é")]
    }
    schema = {"enum": ["na", "name", 12, 1, None], "x-guidance": {"whitespace_flexible": False}}
    assert _language(tokenizer, follow, json_schema=json.dumps(schema)) == {'"na"', '"name"', "12", "1", "null"}
    grammar = 'start: ("12" | "n" /a|o/){1,2}'
    assert _language(tokenizer, follow, grammar=grammar) == {
        a + b for a in ("12", "na", "no") for b in ("", "12", "na", "no")
    }


def test_a_schema_in_a_grammar_means_what_one_alone_does() -> None:
    grammar = """
        start: "%json {" (a | b)  // %json {"const": -9223372036854775808}
        a: "a" %json {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "x-guidance": {"lenient": true}}
        b: /b"#/ %json { "const": "//\\"", "x-guidance": {"whitespace_flexible": false}} # %json {"type": "objec"}
    """
    tokenizer = _tokenizer("own")
    texts = {_write(tokenizer, _constrain(tokenizer, grammar=grammar), seed, follow=False) for seed in range(12)}
    for text in texts:
        assert text == '%json {b"#"//\\""' or 0 < float(text.removeprefix("%json {a")) < 1
    assert len(texts) > 1


def test_white_space_in_json_is_bounded() -> None:
    tokenizer = _tokenizer("own")
    pattern = r"\[( |\n[ \t]{0,20})?(1( |\n[ \t]{0,20})?)?\]"
    schema = json.dumps({"type": "array", "items": {"const": 1}, "maxItems": 1})
    for seed in range(20):
        assert re.fullmatch(pattern, _write(tokenizer, _constrain(tokenizer, json_schema=schema), seed, follow=False))


def test_names_of_special_tokens_are_ordinary_text() -> None:
    for style in STYLES:
        tokenizer = _tokenizer(style)
        constraint = _constrain(tokenizer, regex=r"a<\|endoftext\|>")
        assert _write(tokenizer, constraint, 0, follow=True) == "a<|endoftext|>"
        assert _write(tokenizer, _constrain(tokenizer, regex=r"a<\|endoftext\|>"), 0, follow=False) == "a<|endoftext|>"


def test_what_the_normaliser_would_change_is_written_as_the_grammar_says() -> None:
    tokenizer = _tokenizer("qwen")
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "é"
    for follow in (False, True):
        constraint = _constrain(tokenizer, json_schema='{"const": "name: e\u0301"}')
        assert _write(tokenizer, constraint, 0, follow) == '"name: e\u0301"'


def test_forced_tokens_are_the_tokenizers_own() -> None:
    tokenizer = _tokenizer("smollm")
    text = '{"name": "Zoë", "age": 12, "tags"'
    forced = _constrain(tokenizer, regex=re.escape(text) + "[!?]").forced()
    assert forced == tokenizer.encode(text)[: len(forced)] and len(forced) > 5


def test_a_run_of_white_space_that_the_tokenizer_refuses_can_be_forced() -> None:
    tokenizer = _tokenizer("llama3")
    half = MAX_WHITE_SPACE // 2 + 5
    constraint = _constrain(tokenizer, grammar=f'start: "a" / {{{half}}}/ / {{{half}}}/ "b"')
    ids: list[int] = []
    while not constraint.finished:
        for token in constraint.forced():
            constraint.accept(token)
            ids.append(token)
    assert tokenizer.decode(ids) == "a" + " " * (2 * half) + "b"


def test_a_very_long_token_is_left_out() -> None:
    tokens = [bytes([byte]) for byte in range(256)]
    long = [b"ab" * 2**i for i in range(11)]
    tokenizer = Tokenizer.from_merges([*tokens, *long], {END_OF_TEXT: 300})
    assert max(map(len, tokenizer.token_bytes)) > MAX_TOKEN_BYTES
    assert _write(tokenizer, _constrain(tokenizer, regex="(ab){2000}"), 0, follow=True) == "ab" * 2000


def test_no_character_is_begun_that_cannot_be_ended() -> None:
    tokenizer = _tokenizer("lossy")
    assert tokenizer.engine == "tokenizers"
    [begun] = [i for i, text in enumerate(tokenizer.token_bytes) if text == b"\xf4"]  # 0x80 to 0x8f must follow
    for style, begins in (("lossy", False), ("smollm", True)):
        constraint = _constrain(_tokenizer(style), regex="(?s)..")
        assert constraint.allowed()[begun] == begins
    for seed in range(20):
        text = _write(
            tokenizer, _constrain(tokenizer, regex="[\U00050000-\U0010ffffa-z]{1,20}|日本"), seed, follow=False
        )
        assert text == "日本" or 1 <= len(text) <= 20


def test_a_text_that_needs_a_missing_byte_is_refused() -> None:
    tokenizer = _tokenizer("lossy")
    with pytest.raises(UserError, match=r"^regex: .*this model's tokens"):
        _constrain(tokenizer, regex="\x04")
    for follow in (False, True):
        constraint = _constrain(tokenizer, regex="ab\x04cd")
        with pytest.raises(UserError, match=r"^regex: .*this model's tokens"):
            _write(tokenizer, constraint, 0, follow)


@pytest.mark.parametrize("style", ["own", "qwen"])
def test_a_wrong_token_is_refused_and_changes_nothing(style: str) -> None:
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


def test_an_end_of_text_that_has_text_is_an_end_only() -> None:
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
    ("json_schema", "{", "no JSON"),
    ("json_schema", "", "no JSON"),
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
def test_a_bad_grammar_is_refused_by_name(
    field: str, text: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=rf"^{field}[^ ]*: ") as caught:
        _constrain(_tokenizer("own"), **{field: text})
    message = str(caught.value)
    assert reason in message and len(message) <= 300 and message.isprintable()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("grammar", ['start: "a"{1000000000}', "start: /a{1000000000}/"])
def test_limits_reached_on_the_way_are_an_error_of_the_user(grammar: str, capfd: pytest.CaptureFixture[str]) -> None:
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
def test_rules_that_lead_on_and_on_do_not_end_the_process(name: str) -> None:
    """On threads of an ordinary stack llguidance alone would."""
    tokenizer = _tokenizer("own")
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(lambda: _write(tokenizer, _constrain(tokenizer, **DEEP[name]), 1, True)).result()
    assert text == "x" if "grammar" in DEEP[name] else json.loads(text) is not ...


def test_a_grammar_beyond_all_use_is_refused() -> None:
    with pytest.raises(UserError, match=r"regex: .* it has more than 32768 characters"):
        _constrain(_tokenizer("own"), regex="x" * (MAX_CHARACTERS + 1))


def test_ids_in_a_grammar_mean_text_and_no_special_token() -> None:
    tokenizer = _tokenizer("own")
    allowed = _constrain(tokenizer, grammar="start: <[*]>").allowed()
    assert allowed[:255].all() and not allowed[min(tokenizer.special_tokens.values()) :].any()
    special = tokenizer.special_tokens["<|tool|>"]
    with pytest.raises(UserError, match="this model's tokens"):
        _constrain(tokenizer, grammar=f"start: <[{special}]>")


def test_exactly_one_grammar_is_given() -> None:
    for given_ in ({}, {"regex": "a", "grammar": 'start: "a"'}):
        with pytest.raises((AssertionError, ValueError)):
            _constrain(_tokenizer("own"), **given_)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_vocabulary_goes_with_its_tokenizer() -> None:
    made = _tokenizer("own")
    tokenizer = Tokenizer(made.definition, made.config)
    constraint, alive = _constrain(tokenizer, regex="name 12"), weakref.ref(tokenizer)
    vocabulary = weakref.ref(vocabulary_of(tokenizer))
    del tokenizer
    gc.collect()
    assert alive() is None and vocabulary() is None
    assert _write(made, constraint, 0, follow=True) == "name 12"


def test_a_grammar_is_compiled_once_and_changes_no_thread_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a request's choices each has a place of its own in it."""
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
