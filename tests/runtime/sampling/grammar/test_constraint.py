"""Random models constrained by a grammar; Python's json, a small schema check and re check their output."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from constraints import SCHEMAS, _constrain, _eos, _tokenizer, _write
from hypothesis import given, settings
from hypothesis import strategies as st

from kiara_runtime.errors import UserError
from kiara_runtime.sampling.grammar.vocabulary import MAX_TOKEN_BYTES
from kiara_runtime.tokens.tokenizer import MAX_WHITE_SPACE, Tokenizer
from kiara_runtime.tokens.tokenizer_json import END_OF_TEXT

STYLES = ["own", "llama3", "smollm", "qwen", "lossy"]


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
def test_constrained_output_satisfies_the_schema(schema: dict[str, Any], style: str) -> None:
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
def test_constrained_output_matches_the_regex(regex: str, style: str) -> None:
    tokenizer = _tokenizer(style)
    for seed in range(6):
        text = _write(tokenizer, _constrain(tokenizer, regex=regex), seed, follow=seed % 2 == 0)
        assert re.fullmatch(regex, text), text


@pytest.mark.parametrize("style", STYLES)
def test_constrained_output_follows_the_lark_grammar(style: str) -> None:
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
def test_constrained_output_is_one_of_the_enum_values(values: list[Any], style: str, follow: bool) -> None:
    tokenizer = _tokenizer(style)
    constraint = _constrain(tokenizer, json_schema=json.dumps({"enum": values}))
    chosen = json.loads(_write(tokenizer, constraint, len(values), follow))
    assert json.dumps(chosen, sort_keys=True) in [json.dumps(value, sort_keys=True) for value in values]


def _language(tokenizer: Tokenizer, follow: bool, **grammar: str) -> set[str]:
    """Every text that the masks allow."""
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
        if written in seen:  # the grammar depends on the text, not on its tokens
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
def test_the_masks_allow_exactly_the_language(style: str, follow: bool) -> None:
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


def test_a_schema_inside_a_grammar_means_the_same_as_alone() -> None:
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


def test_names_of_special_tokens_are_written_as_ordinary_text() -> None:
    for style in STYLES:
        tokenizer = _tokenizer(style)
        constraint = _constrain(tokenizer, regex=r"a<\|endoftext\|>")
        assert _write(tokenizer, constraint, 0, follow=True) == "a<|endoftext|>"
        assert _write(tokenizer, _constrain(tokenizer, regex=r"a<\|endoftext\|>"), 0, follow=False) == "a<|endoftext|>"


def test_text_that_the_normaliser_would_change_is_written_as_in_the_grammar() -> None:
    tokenizer = _tokenizer("qwen")
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "é"
    for follow in (False, True):
        constraint = _constrain(tokenizer, json_schema='{"const": "name: e\u0301"}')
        assert _write(tokenizer, constraint, 0, follow) == '"name: e\u0301"'


def test_forced_tokens_match_the_tokenizer() -> None:
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


def test_no_character_is_started_that_the_vocabulary_cannot_complete() -> None:
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
