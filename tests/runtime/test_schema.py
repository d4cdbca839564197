"""JSON schemas: what a grammar accepts is valid to a JSON parser and `jsonschema`, or the schema is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from kiara_runtime.errors import UserError
from kiara_runtime.schema import rewritten
from kiara_runtime.structured import Constraint, constrain
from kiara_runtime.tokenizer import Tokenizer
from kiara_runtime.tokenizer_json import END_OF_TEXT

BYTES = Tokenizer.from_merges([bytes([byte]) for byte in range(256)], {END_OF_TEXT: 256})


def _begin(schema: dict[str, Any]) -> Constraint:
    return constrain(BYTES, 257, frozenset({256}), json_schema=json.dumps(schema))


def _accepts(schema: dict[str, Any], text: str) -> bool:
    constraint = _begin(schema)
    try:
        for byte in text.encode():
            constraint.accept(byte)
    except ValueError:
        return False
    return bool(constraint.allowed()[256])


ABOUT_A = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
SPELLED = {
    "properties": {'say "hi"': {"type": "integer"}, "line\n": {"type": "integer"}, "é/": {"type": "integer"}},
    "additionalProperties": {"type": "string"},
}
PATTERNED = {"type": "object", "patternProperties": {"^x": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "texts"),
    [
        (ABOUT_A, ('{"a":1}', '{"b":"x"}', '{"a":1,"b\\n":"\\""}')),
        (ABOUT_A, ('!{"a":"x"}', '!{"\\u0061":"x"}', '!{"a":1,"\\u0061":"x"}', '!{"a":1,"a":2}')),
        (SPELLED, ('{"say \\"hi\\"":1}', '{"line\\n":1}', '{"é/":1}')),
        (SPELLED, ('!{"say \\u0022hi\\"":"x"}', '!{"line\\u000a":"x"}', '!{"\\u00e9/":"x"}', '!{"é\\/":"x"}')),
        (PATTERNED, ('{"xa":1}', '{"y":"s"}', '!{"\\u0078a":"s"}', '!{"xa":"s"}')),
        ({"type": "integer", "maximum": 10}, ("10", "-3", "!11", "!9e5", "!1e1000")),
        ({"type": "number", "exclusiveMinimum": 0}, ("0.5", "!0", "!0.0", "!-1", "!0e9")),
        ({"type": "number", "multipleOf": 0.01}, ("0.01", "3", "1.10", "!0.015", "!0.001")),
        ({"type": ["integer", "string"], "minimum": 5}, ("7", '"x"', "!3")),
        ({"const": True}, ("true", "!1")),
        ({"enum": ["a\u0000b", {"\u001f": 1}]}, ('"a\\u0000b"', '{"\\u001f":1}', '!"ab"', '!"a\\u0001b"')),
        ({"type": "string", "maxLength": 2}, ('"é日"', '"😀😀"', '"\\n\\\\"', '!"abc"', '!"\\ud83d"')),
        ({"pattern": "b"}, ('"abc"', "5", '!"ac"')),
        ({"pattern": "^\\S[\\sx]$"}, ('"ax"', '!"\ufeffx"', '!"a\\u0085"')),
        ({"format": "something of ours", "type": "string"}, ('"x"', "!5")),
        ({"format": "iri", "type": "string"}, ('"no iri at all"',)),
        ({"uniqueItems": False, "type": "array"}, ("[1,1]",)),
        ({"minProperties": 1, "type": "object"}, ('{"a":1}', "!{}")),
        ({"minProperties": 2, "required": ["a", "b"], "type": "object"}, ('{"a":1,"b":2}', '!{"a":1}')),
        ({"properties": {"a": {"format": "date", "pattern": "^2", "allOf": [{"pattern": "1$"}]}}},
         ('{"a":"2024-02-01"}', '!{"a":"1999-01-01"}', '!{"a":"2024-02-02"}', '!{"a":"2x1"}')),
    ],
)  # fmt: skip
def test_a_text_means_what_it_means_to_a_parser(schema: dict[str, Any], texts: tuple[str, ...]) -> None:
    """Those after a ! are not accepted. All that are accepted are valid."""
    for text in texts:
        if accepted := _accepts(schema, text.removeprefix("!")):
            assert Draft202012Validator(schema).is_valid(json.loads(text))
        assert accepted is not text.startswith("!"), text


@pytest.mark.parametrize(
    ("format", "good", "bad"),
    [
        ("date", "2024-02-29 2000-02-29 1999-12-31 0004-02-29", "2023-02-29 1900-02-29 2023-04-31 2023-13-01 23-01-01"),
        ("time", "23:59:59Z 00:00:00.5+23:59 12:30:00-01:00", "24:00:00Z 12:60:00Z 12:30:00 12:30Z 1:2:3Z 12:00:00+1"),
        (
            "date-time",
            "2024-02-29T12:30:00Z 1999-12-31T23:59:59.123-08:00",
            "2023-02-29T12:30:00Z 2024-02-29 12:30:00Z",
        ),
        ("ipv4", "127.0.0.1 255.255.255.255", "256.0.0.1 1.2.3 01.2.3.4"),
        (
            "uuid",
            "2eb8aa08-aa98-11ea-b4aa-73b441d16380",
            "2eb8aa08-aa98-11ea-b4aa-73b441d1638 2eb8aa08aa9811eab4aa73b441d16380",
        ),
    ],
)
def test_formats_that_are_held_to_are_those_of_the_standard(format: str, good: str, bad: str) -> None:
    schema = {"type": "string", "format": format}
    for text in good.split():
        assert _accepts(schema, f'"{text}"'), text
        oracle = {"format": "date-time"} if format == "time" else schema  # whose checker of times is an older draft's
        whole = f"2024-01-01T{text}" if format == "time" else text
        assert Draft202012Validator(oracle, format_checker=FormatChecker()).is_valid(whole)
    for text in bad.split():
        assert not _accepts(schema, f'"{text}"'), text


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"properties": {"age": {"not": {"const": 3}}}}, ".properties.age.not"),
        ({"items": {"anyOf": [{"type": "null"}, {"uniqueItems": True}]}}, ".items.anyOf[1].uniqueItems"),
        ({"$defs": {"d": {"contains": {}}}, "$ref": "#/$defs/d"}, ".$defs.d.contains"),
        ({"prefixItems": [{}, {"if": {}, "then": {}}]}, ".prefixItems[1].if"),
        ({"oneOf": [{"type": "integer"}, {"minimum": 3}]}, ".oneOf"),
        ({"type": "object", "minProperties": 2}, ".minProperties"),
        ({"items": {"type": "integer", "multipleOf": 999999937}}, ".items.multipleOf"),
        ({"properties": {"a": {"const": "x\u0000y"}}}, ""),
        ({"items": {"properties": {"\u001f": {}}}}, ".items"),
    ],
)
def test_what_cannot_be_held_to_is_refused_by_its_path(schema: dict[str, Any], path: str) -> None:
    with pytest.raises(UserError) as raised:
        _begin(schema)
    assert str(raised.value).startswith(f"json_schema{path}: ")
    assert "coerce" not in str(raised.value) and "Unimplemented" not in str(raised.value)


def test_names_and_values_that_look_like_keywords_are_left_alone() -> None:
    schema = {
        "properties": {"not": {"type": "null"}, "format": {"enum": ["date", {"format": "x"}]}, "uniqueItems": {}},
        "required": ["not"],
        "default": {"format": "date"},
        "examples": [{"format": "date"}],
    }
    assert rewritten(schema) is schema
    assert _accepts(schema, '{"not":null,"format":"date"}') and _accepts(schema, '{"not":null,"format":{"format":"x"}}')


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-30, 30) | st.sampled_from(["", "a", "é", "2024-02-29", "b\n", "\u0001"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=5,
)
SCHEMAS = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "array", "string", "integer", "number", "boolean", "null"]),
            "minimum": st.integers(-5, 5),
            "multipleOf": st.sampled_from([2, 3, 0.5]),
            "maxLength": st.integers(0, 2),
            "pattern": st.sampled_from(["a", "^b", "\\s", "^$"]),
            "format": st.sampled_from(["date", "nonsense"]),
            "minItems": st.integers(0, 2),
            "maxProperties": st.integers(0, 2),
            "required": st.lists(st.sampled_from("abc"), max_size=2, unique=True),
            "enum": st.lists(VALUES, min_size=1, max_size=3),
        },
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
            "additionalProperties": st.booleans() | inner,
            "items": inner,
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "anyOf": st.lists(inner, min_size=1, max_size=2),
        },
    ),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(schema=SCHEMAS, value=VALUES)
def test_what_a_grammar_accepts_is_valid(schema: dict[str, Any], value: Any) -> None:
    valid = Draft202012Validator(schema, format_checker=FormatChecker(["date"])).is_valid(value)
    try:
        accepted = _accepts(schema, json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    except UserError:
        return  # refused before a token
    assert valid or not accepted
