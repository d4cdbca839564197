"""JSON schemas: JSON that a grammar accepts is valid according to `jsonschema`, or the schema is refused by path."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from kiara_runtime.errors import UserError
from kiara_runtime.sampling.grammar.constraint import Constraint, constrain
from kiara_runtime.tokens.tokenizer import Tokenizer
from kiara_runtime.tokens.tokenizer_json import END_OF_TEXT

BYTES = Tokenizer.from_merges([bytes([byte]) for byte in range(256)], {END_OF_TEXT: 256})


def _begin(schema: dict[str, Any]) -> Constraint:
    """The schema with white space as the model likes, unless it says otherwise."""
    schema = {**schema, "x-guidance": {"whitespace_flexible": True, **schema.get("x-guidance", {})}}
    return constrain(BYTES, 257, frozenset({256}), json_schema=json.dumps(schema))


def _accepts(schema: dict[str, Any], text: str) -> bool:
    constraint = _begin(schema)
    try:
        for byte in text.encode():
            constraint.accept(byte)
    except ValueError:
        return False
    return bool(constraint.allowed()[256])


def test_white_space_is_that_of_python_unless_the_schema_asks_for_more_or_less() -> None:
    texts = {None: '{"a": 1, "b": [2, 3]}', False: '{"a":1,"b":[2,3]}', True: '{"a":\n    1,"b": [ 2 , 3]}'}
    schema = {"properties": {"a": {"type": "integer"}, "b": {"type": "array"}}, "additionalProperties": False}
    for flexible in texts:
        made = {**schema, "x-guidance": {"whitespace_flexible": flexible}} if flexible is not None else schema
        for form, text in texts.items():
            constraint, length = constrain(BYTES, 257, frozenset({256}), json_schema=json.dumps(made)), 0
            while length < len(text) and constraint.allowed()[ord(text[length])]:
                constraint.accept(ord(text[length]))
                length += 1
            assert (length == len(text)) == (flexible is True or form is flexible), (flexible, form)


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
        ({"type": "number", "exclusiveMinimum": 0}, ("0.5", "0.000000001", "!0", "!0.0", "!-1", "!0e9")),
        ({"type": "number", "exclusiveMinimum": 0}, (f"!0.{'0' * 400}1",)),
        ({"type": "number", "exclusiveMaximum": 1}, ("0.9", "0.99", "0.999999999", "!1", "!0.99999999999999999999")),
        ({"exclusiveMinimum": 0.1, "exclusiveMaximum": 1e9}, ("0.2", "999999999", "!0.1000000000000000000001", "!0.1")),
        ({"allOf": [{"exclusiveMinimum": 0}, {"multipleOf": 2.5}]}, ("2.5", "10", "!0", "!1.25", "!4.2949672961")),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, ("5", f"{2**53}", "0", f"!{2**64}")),
        ({"type": "integer", "maximum": 2**53 + 1}, (f"{2**53}", "!9007199254740994")),
        ({"type": "integer", "exclusiveMaximum": 2**60}, ("1", f"!{2**60}")),
        ({"type": "integer", "multipleOf": 360.0, "minLength": 2.0}, ("720", "-360", "0", "!361")),
        ({"oneOf": [{"const": "a", "title": "A"}, {"enum": ["b", 1]}]}, ('"a"', '"b"', "1", '!"c"')),
        ({"type": "number", "multipleOf": 0.25}, ("0.25", "3", "-1.50", "!0.3", "!0.125", "!1125899906842624.1")),
        ({"type": ["integer", "string"], "minimum": 5}, ("7", '"x"', "!3")),
        ({"const": True}, ("true", "!1")),
        ({"enum": ["a\u0000b", {"\u001f": 1}]}, ('"a\\u0000b"', '{"\\u001f":1}', '!"ab"', '!"a\\u0001b"')),
        ({"type": "string", "maxLength": 2}, ('"é日"', '"😀😀"', '"\\n\\\\"', '!"abc"', '!"\\ud83d"')),
        ({"pattern": "b"}, ('"abc"', "5", '!"ac"')),
        ({"pattern": "^\\S[\\sx]$"}, ('"ax"', '!"\ufeffx"', '!"a\\u0085"')),
        ({"pattern": "^.$"}, ('"x"', '!"\\n"', '!"\\r"', '!"\u2028"')),
        ({"pattern": "^[\\W]\\D$"}, ('"&x"', '"-é"', '!"éx"', '!"ax"', '!"&٣"', '!"&3"')),
        ({"pattern": "^[^\\d]\\w$"}, ('"xx"', '!"٣x"', '!"3x"', '!"xé"')),
        ({"patternProperties": {"^\\W": {"type": "null"}}}, ('{"&":null}', '!{"&":1}', '!{"é":1}', '{"a":1}')),
        ({"$ref": "#/components/a", "components": {"a": {"type": "number", "exclusiveMaximum": 1, "format": "ours"}}},
         ("0.5", "!1", "!0.99999999999999999999")),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"unused": {"not": {}}}, "type": "null"},
         ("null", "!1")),
        ({"type": "string", "format": "hostname"}, ('"a.b"', f'!"{"a." * 130}a"')),
        ({"x-guidance": {"lenient": True, "coerce_one_of": True, "item_separator": ";"}, "items": {"type": "null"}},
         ("[null,null]", "!{}; ", "![null;null]")),
        ({"format": "something of ours", "type": "string"}, ('"x"', "!5")),
        ({"format": "iri", "type": "string"}, ('"no iri at all"',)),
        ({"uniqueItems": False, "type": "array"}, ("[1,1]",)),
        ({"minProperties": 1, "type": "object"}, ('{"a":1}', "!{}")),
        ({"minProperties": 2, "required": ["a", "b"], "type": "object"}, ('{"a":1,"b":2}', '!{"a":1}')),
        ({"properties": {"a": {"format": "date", "pattern": "^2", "allOf": [{"pattern": "1$"}]}}},
         ('{"a":"2024-02-01"}', '!{"a":"1999-01-01"}', '!{"a":"2024-02-02"}', '!{"a":"2x1"}')),
    ],
)  # fmt: skip
def test_accepted_texts_are_valid_and_invalid_ones_are_rejected(schema: dict[str, Any], texts: tuple[str, ...]) -> None:
    """Texts marked with ! must be rejected; all others must be accepted and valid."""
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
def test_enforced_formats_follow_the_standard(format: str, good: str, bad: str) -> None:
    schema = {"type": "string", "format": format}
    for text in good.split():
        assert _accepts(schema, f'"{text}"'), text
        assert Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).is_valid(text)
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
        ({"properties": {"age": {"multipleOf": 0.01}}}, ".properties.age.multipleOf"),
        ({"allOf": [{"multipleOf": 97}, {"multipleOf": 89}]}, ".allOf[1].multipleOf"),
        ({"multipleOf": 999999937}, ".multipleOf"),
        ({"multipleOf": -2}, ".multipleOf"),
        ({"const": -(2**63)}, ".const"),
        ({"enum": [{"a": [2**53 + 1]}]}, ".enum"),
        ({"minimum": 2**53 + 1}, ".minimum"),
        ({"minimum": "3"}, ".minimum"),
        ({"exclusiveMaximum": True}, ".exclusiveMaximum"),
        ({"items": [{"type": "null"}]}, ".items"),
        ({"properties": {"a": 5}}, ".properties"),
        ({"items": {"type": ["null", "any"]}}, ".items.type"),
        ({"required": "a"}, ".required"),
        ({"anyOf": []}, ".anyOf"),
        ({"properties": {"two words": {"not": {}}}}, '.properties["two words"].not'),
        ({"properties": {"a": {"pattern": "a(?=b)"}}}, ".properties.a.pattern"),
        ({"patternProperties": {"(": {}}}, '.patternProperties["("]'),
        ({"patternProperties": {"a": {}, "b": {"type": "null"}}}, ".patternProperties.a"),
        ({"patternProperties": {"\\x41": {}, "\\u0041": {}}}, ".patternProperties"),
        ({"properties": {"a": {}, "b": {"enum": []}}}, ".properties.b.enum"),
        (
            {"type": "object", "required": ["b"], "properties": {"a": {}, "b": {"type": "string", "enum": [1]}}},
            ".properties.b.enum",
        ),
        ({"items": {"minItems": 3, "maxItems": 2, "type": "array"}, "minItems": 1, "type": "array"}, ".minItems"),
        (
            {"type": "object", "required": ["n"], "properties": {"n": {"type": "array", "minItems": 3, "maxItems": 2}}},
            ".properties.n.minItems",
        ),
        ({"type": "object", "properties": {"a": {}}, "maxProperties": 1}, ".maxProperties"),
        ({"anyOf": [{"type": "null"}, {"$ref": "#/$defs/none"}]}, ".anyOf[1].$ref"),
        ({"properties": {"a": {"$ref": "other.json"}}}, ".properties.a.$ref"),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, ".$ref"),
        ({"$ref": "#"}, ".$ref"),
        ({"allOf": [{}, False, False]}, ".allOf[2]"),
        ({"items": {"properties": {"\u001f": {}}}}, ".items"),
    ],
)
def test_unsupported_schemas_are_refused_by_path(schema: dict[str, Any], path: str) -> None:
    with pytest.raises(UserError) as raised:
        _begin(schema)
    said = str(raised.value)
    assert said.startswith(f"json_schema{path}: ") and len(said) < 300
    assert not re.search("coerce|nimplemented|x-guidance|f64|nsatisfiable|lexer", said)


def test_names_and_values_that_look_like_keywords_are_left_alone() -> None:
    schema = {
        "properties": {"not": {"type": "null"}, "format": {"enum": ["date", {"format": "x"}]}, "uniqueItems": {}},
        "required": ["not"],
        "default": {"format": "date"},
        "examples": [{"format": "date"}],
    }
    assert _accepts(schema, '{"not":null,"format":"date"}') and _accepts(schema, '{"not":null,"format":{"format":"x"}}')


def _draw(schema: dict[str, Any], seed: int) -> str | None:
    """Output of a random model under a schema; None if it does not end."""
    constraint, rng, data = _begin(schema), np.random.default_rng(seed), bytearray()
    while len(data) < 200:
        allowed = np.flatnonzero(constraint.allowed())
        if 256 in allowed and (len(allowed) == 1 or rng.random() < 0.2):
            return data.decode()
        tokens = [int(token) for token in allowed if token != 256]
        likely = [token for token in tokens if chr(token) in '"}],:.0123456789'] or tokens
        data.append(int(rng.choice(likely if rng.random() < 0.7 else tokens)))
        constraint.accept(data[-1])
    return None


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
            "exclusiveMinimum": st.sampled_from([0, -1.5, 0.1, 1e-20, 3, 1e6]),
            "exclusiveMaximum": st.sampled_from([1, 0.3, -2, 1e12, 2**60]),
            "multipleOf": st.sampled_from([1.0, 2, 3, 0.5, 2.5, 0.1]),
            "minLength": st.sampled_from([0, 1.0]),
            "maxLength": st.integers(0, 2),
            "pattern": st.sampled_from(["a", "^b", "\\s", "^$", "\\W", "[^\\d.]"]),
            "format": st.sampled_from(["date", "hostname", "nonsense"]),
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
            "oneOf": st.lists(inner, min_size=1, max_size=2),
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "patternProperties": st.dictionaries(st.sampled_from(["^a", "[bc]"]), inner, max_size=1),
        },
    ),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(schema=SCHEMAS, value=VALUES, seed=st.integers(0, 99))
def test_accepted_and_generated_json_is_valid(schema: dict[str, Any], value: Any, seed: int) -> None:
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    try:
        _begin(schema)
    except UserError as error:
        assert str(error).startswith("json_schema")
        return  # refused before a token
    accepted = _accepts(schema, json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    drawn = _draw(schema, seed)
    assert validator.is_valid(value) or not accepted
    assert drawn is None or validator.is_valid(json.loads(drawn)), drawn
