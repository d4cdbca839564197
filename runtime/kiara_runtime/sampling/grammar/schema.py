"""Rewrites JSON Schemas so that llguidance reads them as JSON Schema 2020-12 does, and refuses what it cannot enforce.

`kiara_runtime.sampling.grammar.constraint` compiles the grammar and follows it. A schema of an older draft is
read as one of 2020-12, which allows no more than its own draft does; a keyword for which that fails is refused.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any, cast

from kiara_runtime.errors import UserError
from kiara_runtime.sampling.grammar.schema_checks import (
    DEFINITIONS,
    LISTS,
    NAMED,
    ONE,
    Schema,
    check_shapes,
    needs_numbers_for_characters,
    places,
    refusal,
    step,
)
from kiara_runtime.sampling.grammar.schema_rules import limit_steps, mend_numbers, mend_options, mend_strings

# White space between JSON tokens: a space after a comma and a colon, as Python and chat templates write JSON, so that a
# model chooses none. A schema may ask for less or more by "x-guidance": {"whitespace_flexible": false or true}; more is
# none, a space, or a line break and an indent, because a small model that may write any fills its context with it.
WHITE_SPACE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
NO_WHITE_SPACE = {"whitespace_flexible": False}
SOME_WHITE_SPACE = {"whitespace_pattern": " |\n[ \t]{0,20}"}
# Without \u each string has one spelling: otherwise a property's name could be spelled so that its schema is missed.
ESCAPES = {"json_allowed_escapes": 'nrbtf\\"'}
MAX_DEPTH = 120  # llguidance's limit is 128, and rewriting adds a few levels
MAX_SECONDS = 2  # for finding the part of a schema that does not compile

# %json, and the strings, comments and expressions of Lark, in which it is not searched for.
_LARK = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|#[^\n]*|/(?:\\.|[^/\\\n])+/|%json\s*')
_WHY = {
    "$ref": ("it does not refer to a usable part of this schema", "name a part of `$defs`"),
    "oneOf": ("its options are not clearly exclusive", "use anyOf"),
    "patternProperties": ("it is unsupported, or may match a name that another expression matches", "correct it"),
    "maxProperties": (
        "it can be enforced only if `required` has all of `properties`",
        "leave it out, and check it yourself",
    ),
}
_WHY["minProperties"] = _WHY["maxProperties"]
_NO_VALUE = ("it cannot be enforced together with the rest of the schema", "correct it or leave it out")


def schema_source(library: Any, text: str) -> str:
    """The grammar of a schema as llguidance's own JSON. Raises UserError with the path of what cannot be enforced."""
    return _source(library, _parsed(text))


def lark_text(text: str) -> str:
    """A Lark grammar in which each schema after %json is rewritten for llguidance."""
    made, place = list[str](), 0
    for match in _LARK.finditer(text):
        if match[0].startswith("%json") and match.end() > place:
            try:
                schema, end = _DECODER.raw_decode(text, match.end())
            except (ValueError, RecursionError):  # llguidance reports where it is wrong
                continue
            if isinstance(schema, dict):
                try:
                    options = _mend(cast("Schema", schema))
                except UserError as error:
                    raise error.inside("grammar", ": in its %json, ") from None
                made += [text[place : match.end()], json.dumps({**schema, "x-guidance": options})]
                place = end
    return "".join([*made, text[place:]])


def find_failing_part(library: Any, text: str, begin: Callable[[str], object]) -> UserError:
    """The error for a schema that `begin` cannot compile, with the path of a part that causes it.

    Parts are removed, the likeliest causes first, until the rest compiles; the last one removed is the cause. The
    search goes on within it.
    """
    root = _parsed(text)
    path, node, (problem, remedy) = "", root, _NO_VALUE
    shown = f"{text!r:.60}"
    give_up = time.monotonic() + MAX_SECONDS

    def works(node: Schema, parts: list[Part]) -> bool:
        if time.monotonic() > give_up:
            raise TimeoutError
        try:
            begin(_source(library, _without(root, node, parts)))
        except UserError:
            return False
        return True

    with contextlib.suppress(TimeoutError):
        while (parts := list(_parts(node))) and works(node, parts):
            last = bisect_left(range(1, len(parts)), True, key=lambda count: works(node, parts[:count]))
            key, name = parts[last]
            value = node[key] if name is None else node[key][name]
            path += step(key) if name is None else step(key) + step(name)
            known = _WHY if name is None or key == "patternProperties" else {}
            (problem, remedy), shown = known.get(key, _NO_VALUE), f"{value!r:.60}"
            if not isinstance(value, dict) or (name is None and key not in ONE):
                break
            _remove(node, parts[:last])
            node = cast("Schema", value)
    return refusal(path, f"{shown}: {problem}", remedy)


Part = tuple[str, str | int | None]  # a keyword, and of one that holds several schemas the name or index of one


def _parts(schema: Schema) -> Iterator[Part]:
    """The entries of `$defs`, then those of other keywords, then the keywords; each group likeliest cause first."""
    rest = (ONE | LISTS | NAMED, {"type"}, {"$ref"})
    keys = sorted(schema, key=lambda key: (key not in DEFINITIONS, [key in group for group in rest]))
    for key in keys:
        value: Any = schema[key]
        if key in NAMED:
            yield from ((key, name) for name in value)
        elif key in LISTS:
            yield from ((key, i) for i in range(len(value)))
    yield from ((key, None) for key in keys)


def _without(root: Schema, node: Schema, parts: list[Part]) -> Schema:
    """A copy of the root without these parts of `node`, one of its schemas."""
    copies = dict[int, Any]()
    made = copy.deepcopy(root, copies)
    _remove(copies[id(node)], parts)
    return made


def _remove(schema: Schema, parts: list[Part]) -> None:
    for key, name in parts:
        if name is None:
            del schema[key]
        elif key == "patternProperties":
            del schema[key][name]
        else:
            schema[key][name] = {}


def _parsed(text: str) -> Schema:
    try:
        schema: Any = _DECODER.decode(text)
        json.dumps(schema, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise refusal("", "it contains a lone surrogate, which is not a character", "leave it out") from None
    except RecursionError:
        raise refusal("", f"it is more than {MAX_DEPTH} levels deep", "flatten it with `$ref`") from None
    except ValueError as error:
        raise refusal("", f"{text!r:.60} is not JSON: {error}", "correct it") from None
    if not isinstance(schema, dict):
        raise refusal("", f"{text!r:.60} is not a JSON object", "give a schema such as {}")
    levels, layer = 0, [cast("Any", schema)]
    while layer:
        levels += 1
        layer = [inner for value in layer for inner in _inside(value)]
    if levels > MAX_DEPTH:
        raise refusal("", f"it is more than {MAX_DEPTH} levels deep", "flatten it with `$ref`")
    return cast("Schema", schema)


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(cast("Schema", value).values())
    return cast("list[Any]", value) if isinstance(value, list) else []


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text:.20} is out of range")
    return number


def _source(library: Any, schema: Schema) -> str:
    """The grammar of a schema, which is changed in place."""
    options = _mend(schema)
    return library.LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=options)


def _whole(text: str) -> int:
    _finite(text)
    return int(text)


_DECODER = json.JSONDecoder(parse_int=_whole, parse_float=_finite, parse_constant=_finite)


def _mend(schema: Schema) -> dict[str, Any]:
    """Rewrite a schema in place so that llguidance reads it as it is meant, with the options that are returned."""
    found = list(places(schema))
    check_shapes(found)
    escapes = ESCAPES
    if needs_numbers_for_characters(schema):
        escapes = dict[str, str]()
        for path, inner in found:
            _check_closed(path, inner)
    own = schema.pop("x-guidance", None)  # one option is used below; llguidance's others would allow more
    asked = cast("Schema", own).get("whitespace_flexible") if isinstance(own, dict) else None
    space = {True: SOME_WHITE_SPACE, False: NO_WHITE_SPACE}[asked] if isinstance(asked, bool) else WHITE_SPACE
    for path, inner in found:
        inner.pop("$schema", None)
        mend_numbers(path, inner)
        mend_strings(path, inner)
        mend_options(inner)
    limit_steps(found)
    return {**space, **escapes}


def _check_closed(path: str, schema: Schema) -> None:
    if ("properties" in schema or "patternProperties" in schema) and schema.get("additionalProperties") is not False:
        raise refusal(
            path, "objects must be closed in a schema with control characters", "add additionalProperties: false"
        )
