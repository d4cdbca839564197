"""JSON Schemas as llguidance must be given them to mean what JSON Schema 2020-12 says, and what it cannot do, by name.

The grammar of a schema is begun, and followed, in `kiara_runtime.structured`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, cast

from kiara_runtime.errors import UserError

# Between the parts of JSON nothing, a space, or a line break and an indent, as in llama.cpp: a small model that may
# write white space without bound does so to the end of its context. A schema's own "x-guidance" stands instead.
# Without \u each text has one spelling: else a property's name could be spelled so that its schema does not see it.
ESCAPES = {"json_allowed_escapes": 'nrbtf\\"'}
WHITE_SPACE = {"whitespace_pattern": " |\n[ \t]{0,20}"}
JSON_OPTIONS = {**WHITE_SPACE, **ESCAPES}

MOST_STEP = 100_000  # of multipleOf: its grammar has as many states; a million take five seconds, more take gigabytes

# Keywords whose value is a schema, a list of schemas, or schemas by name. Nothing else holds one.
_ONE = frozenset(
    "items additionalProperties not if then else contains propertyNames unevaluatedItems unevaluatedProperties".split()
)
_LISTS = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
_NAMED = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
# What llguidance cannot hold a text to.
UNSUPPORTED = frozenset(
    "not if then else contains minContains maxContains uniqueItems propertyNames dependentRequired dependentSchemas "
    "dependencies unevaluatedItems unevaluatedProperties $dynamicRef $dynamicAnchor $recursiveRef".split()
)
# Those that it knows by the standard's own rules; any other is an annotation, as 2020-12 has it for all of them.
_KNOWN_FORMATS = frozenset("duration email hostname ipv4 ipv6 uuid uri".split())

# RFC 3339, with every month's length, but for the year 0, which Python lacks, and leap seconds, which need a table.
_YEAR = r"([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP = r"([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_DAYS = r"((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
_DATE = rf"({_YEAR}-{_DAYS}|{_LEAP}-02-29)"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_FORMATS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}

_UNWRITABLE = re.compile(r"(?<!\\)(\\\\)*\\u00([01][0-9a-f]|7f)")  # as JSON spells what has no escape of one letter

# White space of ECMA 262, which `pattern` goes by; that of the Rust library differs in two characters.
_SPACE = r"\t\n\x0b\x0c\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_CLASSES = {r"\s": f"[{_SPACE}]", r"\S": f"[^{_SPACE}]"}


def schema_source(library: Any, text: str) -> str:
    """The grammar of a schema as llguidance's own JSON; raises ValueError where it is no JSON object."""
    schema = _parsed(text)
    if schema is None:
        return library.LLMatcher.grammar_from_json_schema(text, defaults=JSON_OPTIONS)
    for path, why in refused(schema):
        raise UserError(f"json_schema{path}: {why}")
    escapes = ESCAPES
    if spells_control(schema):
        escapes = dict[str, str]()
        for path in open_objects(schema):
            raise UserError(
                f"json_schema{path}: beside control characters it must be closed; add additionalProperties: false"
            )
    made, own = rewritten(schema), schema.get("x-guidance")
    if isinstance(own, dict):  # not merged with ours: there a pattern would outdo `"whitespace_flexible": false`
        made = {**made, "x-guidance": {**escapes, **cast("dict[str, Any]", own)}}
    given = text if made is schema else json.dumps(made)
    options = {} if "x-guidance" in schema else {**WHITE_SPACE, **escapes}
    return library.LLMatcher.grammar_from_json_schema(given, defaults=options)


def _parsed(text: str) -> dict[str, Any] | None:
    """None where it is no JSON object, which llguidance tells in its own words."""
    try:
        schema: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", schema) if isinstance(schema, dict) else None


def culprit(text: str) -> str | None:
    """By its path, the keyword for which no grammar could be made of a schema; None where none stands out."""
    schema = _parsed(text) or {}
    for path in unsupported(schema):
        return f"json_schema{path}: output cannot be held to this keyword; leave it out, and check it yourself"
    for path in alternatives(schema):
        return f"json_schema{path}: its options are not plainly exclusive; use anyOf"
    return None


def rewritten(schema: dict[str, Any]) -> dict[str, Any]:
    """An equal schema that llguidance takes as it is meant; the same object where nothing has to change."""
    changed = _each(schema, rewritten)
    format, pattern = changed.get("format"), changed.get("pattern")
    if isinstance(format, str) and format not in _KNOWN_FORMATS:
        changed = {key: value for key, value in changed.items() if key != "format"}
        if format in _FORMATS:
            changed = _also(changed, _FORMATS[format])
    if isinstance(pattern, str) and (spelled := _with_spaces(pattern)) != pattern:
        changed = {**changed, "pattern": spelled}
    if changed.get("uniqueItems") is False:
        changed = {key: value for key, value in changed.items() if key != "uniqueItems"}
    return changed


def refused(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Path and reason of each keyword that would be taken, but not held to."""
    least, required = schema.get("minProperties"), schema.get("required")
    named = len(set(map(str, cast("list[Any]", required)))) if isinstance(required, list) else 0
    if isinstance(least, int) and least > max(1, named):
        yield f"{path}.minProperties", "a name that comes twice would count twice; name the properties in `required`"
    step = schema.get("multipleOf")
    if isinstance(step, (int, float)) and step > MOST_STEP:
        yield (
            f"{path}.multipleOf",
            f"{step} is above {MOST_STEP:,}, and its grammar would take too much memory; leave it out",
        )
    for name, inner in _inner(schema):
        yield from refused(inner, f"{path}.{name}")


def spells_control(schema: dict[str, Any]) -> bool:
    """Whether a value or a name in it has a character that JSON can only spell by its number."""
    return bool(_UNWRITABLE.search(json.dumps(schema)))


def open_objects(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Path of each object that names properties and takes others as well."""
    if ("properties" in schema or "patternProperties" in schema) and schema.get("additionalProperties") is not False:
        yield path
    for name, inner in _inner(schema):
        yield from open_objects(inner, f"{path}.{name}")


def unsupported(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Path of each keyword that no grammar is made of, in the order of the schema."""
    for key in schema:
        if key in UNSUPPORTED:
            yield f"{path}.{key}"
        for name, inner in _inner({key: schema[key]}):
            yield from unsupported(inner, f"{path}.{name}")


def alternatives(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Path of each `oneOf`."""
    if "oneOf" in schema:
        yield f"{path}.oneOf"
    for name, inner in _inner(schema):
        yield from alternatives(inner, f"{path}.{name}")


def _each(schema: dict[str, Any], act: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """A schema with `act` done to each schema directly inside."""

    def one(value: Any) -> Any:
        return act(cast("dict[str, Any]", value)) if isinstance(value, dict) else value

    def changed(key: str, value: Any) -> Any:
        if key in _ONE:
            return one(value)
        if key in _LISTS and isinstance(value, list):
            return [one(item) for item in cast("list[Any]", value)]
        if key in _NAMED and isinstance(value, dict):
            return {name: one(item) for name, item in cast("dict[str, Any]", value).items()}
        return value

    made = {key: changed(key, value) for key, value in schema.items()}
    return schema if made == schema else made


def _inner(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas directly inside, with their paths from here."""
    for key, value in schema.items():
        if key in _ONE:
            found: list[tuple[str, Any]] = [(key, value)]
        elif key in _LISTS and isinstance(value, list):
            found = [(f"{key}[{i}]", item) for i, item in enumerate(cast("list[Any]", value))]
        elif key in _NAMED and isinstance(value, dict):
            found = [(f"{key}.{name}", item) for name, item in cast("dict[str, Any]", value).items()]
        else:
            continue
        yield from ((name, cast("dict[str, Any]", item)) for name, item in found if isinstance(item, dict))


def _also(schema: dict[str, Any], pattern: str) -> dict[str, Any]:
    """The schema with another pattern that strings must match."""
    if "pattern" not in schema:
        return {**schema, "pattern": pattern}
    others = schema.get("allOf")
    return {**schema, "allOf": [*(cast("list[Any]", others) if isinstance(others, list) else []), {"pattern": pattern}]}


def _with_spaces(pattern: str) -> str:
    r"""`\s` and `\S` spelled out; the latter not in a class, where that cannot be said."""
    made, inside, place = list[str](), False, 0
    while place < len(pattern):
        pair = pattern[place : place + 2]
        if pair in (r"\s", r"\S") and not (inside and pair == r"\S"):
            made.append(_SPACE if inside else _CLASSES[pair])
        else:
            made.append(pair if pair.startswith("\\") else pair[:1])
            inside = (inside or pair[:1] == "[") and pair[:1] != "]"
        place += 2 if pair.startswith("\\") else 1
    return "".join(made)
