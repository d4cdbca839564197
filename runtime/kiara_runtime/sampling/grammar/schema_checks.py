"""The parts of a JSON Schema by path, and the checks on them before a grammar is made."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, cast
from urllib.parse import unquote

from kiara_runtime.errors import UserError

Schema = dict[str, Any]
MAX_COUNT = 1 << 31
MAX_PATH = 200

# Keywords whose value is a schema, a list of schemas, or schemas by name. No other keyword contains schemas.
ONE = frozenset(("items", "additionalProperties"))
LISTS = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
DEFINITIONS = frozenset(("$defs", "definitions"))
NAMED = DEFINITIONS | {"properties", "patternProperties"}
# Keywords that llguidance cannot enforce.
UNSUPPORTED = frozenset(
    "not if then else contains minContains maxContains uniqueItems propertyNames dependentRequired dependentSchemas "
    "dependencies unevaluatedItems unevaluatedProperties $dynamicRef $dynamicAnchor $recursiveRef".split()
)
TYPES = frozenset("null boolean object array number string integer".split())

_PLAIN = re.compile(r"[\w$~/^-]+")
_UNWRITABLE = re.compile(r"(?<!\\)(\\\\)*\\u00([01][0-9a-f]|7f)")  # control characters without a one-letter escape
_BY_NAME = re.compile(r'"\$ref": "(?!#/|#")')  # a reference in JSON that is not a pointer into the schema itself
_POINTER = re.compile(r"(/(items|additionalProperties|(allOf|anyOf|oneOf|prefixItems)/\d+|"
                      r"(properties|patternProperties|\$defs|definitions)/[^/]*))*")  # fmt: skip


def refusal(path: str, problem: str, remedy: str) -> UserError:
    """An error for the part of a schema at this path. A long path is cut in the middle."""
    shown = path if len(path) <= MAX_PATH else f"{path[: MAX_PATH // 2]}…{path[-MAX_PATH // 2 :]}"
    return UserError(f"json_schema{shown}", problem, remedy)


def step(name: str | int) -> str:
    """A keyword, a name or an index as the next part of a path; without spaces if the name has none."""
    if isinstance(name, int):
        return f"[{name}]"
    if _PLAIN.fullmatch(name):
        return f".{name:.60}"
    return f"[{json.dumps(name[:60], ensure_ascii=not name.isprintable())}]"


def places(root: Schema) -> Iterator[tuple[str, Schema]]:
    """Every schema in a schema with its path, the root first; definitions only if a `$ref` may refer to them."""
    anywhere = bool(_BY_NAME.search(json.dumps(root)))
    waiting: list[tuple[str, Any]] = [("", root)]
    seen = set[int]()
    while waiting:
        path, schema = waiting.pop()
        if not isinstance(schema, dict) or id(cast("Schema", schema)) in seen:
            continue
        schema = cast("Schema", schema)
        seen.add(id(schema))
        yield path, schema
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/"):
            waiting.append(_led_to(root, f"{path}.$ref", reference))
        waiting += reversed(list(_inner(path, schema, anywhere)))


def _inner(path: str, schema: Schema, definitions: bool) -> Iterator[tuple[str, Any]]:
    for key, value in schema.items():
        if key in DEFINITIONS and not definitions:
            continue
        if key in ONE:
            yield path + step(key), value
        elif key in LISTS and isinstance(value, list):
            yield from ((path + step(key) + step(i), item) for i, item in enumerate(cast("list[Any]", value)))
        elif key in NAMED and isinstance(value, dict):
            yield from ((path + step(key) + step(name), item) for name, item in cast("Schema", value).items())


def _led_to(root: Schema, path: str, reference: str) -> tuple[str, Any]:
    """Path and schema at a JSON Pointer (RFC 6901)."""
    value, there = cast("Any", root), ""
    for part in unquote(reference).split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        try:
            key: Any = int(name) if isinstance(value, list) else name
            value, there = cast("Any", value)[key], there + step(key)
        except (LookupError, TypeError, ValueError):
            if _inner_ids(root):  # it may be relative to an inner schema with an `$id`
                return "", None
            raise refusal(path, f"{reference!r:.60}: there is no such part in the schema", "correct it") from None
    return there, value


def _inner_ids(root: Schema) -> bool:
    return json.dumps(root).count('"$id"') > ("$id" in root)


def check_shapes(found: list[tuple[str, Schema]]) -> None:
    """Raise UserError for the first keyword that is not supported, or whose value has the wrong type."""
    root = found[0][1]
    for path, schema in found:
        for key, value in schema.items():
            if key == "uniqueItems" and value is False:
                continue
            if key in UNSUPPORTED:
                raise refusal(path + step(key), "it cannot be enforced", "leave it out, and check it yourself")
            fits, kind = _KINDS.get(key, (lambda value: True, ""))
            if not fits(value):
                hint = "; a list is for drafts before 2020-12: use prefixItems" if key == "items" else ""
                raise refusal(path + step(key), f"{value!r:.60} cannot be used", f"give {kind}{hint}")
        _check_least(path, schema)
        _check_reference(root, path, schema)
        schema.pop("uniqueItems", None)


def _check_least(path: str, schema: Schema) -> None:
    least, required = schema.get("minProperties", 0), schema.get("required", [])
    if least > max(1, len(set(cast("list[str]", required)))):
        raise refusal(
            f"{path}.minProperties", "a duplicate name would count twice", "name the properties in `required`"
        )


def _check_reference(root: Schema, path: str, schema: Schema) -> None:
    """Refuse references to what `places` does not find, which would stay unchecked, and to metaschemas.

    llguidance has the metaschemas built in.
    """
    reference = schema.get("$ref", "#")
    base, _, fragment = reference.partition("#")
    strange = fragment.startswith("/") and not _POINTER.fullmatch(fragment) and (base or _inner_ids(root))
    if strange or "json-schema.org" in base:
        raise refusal(f"{path}.$ref", f"{reference!r:.60} is not a part of this schema", "put it into `$defs`")


def needs_numbers_for_characters(schema: Schema) -> bool:
    """Whether a value or a name in it has a character that JSON can only write as a numeric escape."""
    return bool(_UNWRITABLE.search(json.dumps(schema)))


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_schema(value: Any) -> bool:
    return isinstance(value, (dict, bool))


def _is_count(value: Any) -> bool:
    return is_number(value) and 0 <= value <= MAX_COUNT and value == int(value)


def _is_type(value: Any) -> bool:
    names = cast("list[Any]", value if isinstance(value, list) else [value])
    return bool(names) and all(isinstance(name, str) and name in TYPES for name in names)


def _lists(each: Callable[[Any], bool], least: int = 0) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        items = cast("list[Any]", value if isinstance(value, list) else [])
        return isinstance(value, list) and len(items) >= least and all(map(each, items))

    return check


def _are_named(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_schema, cast("Schema", value).values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_type, "one or several of null, boolean, object, array, number, string and integer"),
    "enum": (_lists(lambda value: True, 1), "a list of at least one value"),
    "required": (_lists(_is_text), "a list of names"),
    "multipleOf": (lambda value: is_number(value) and value > 0, "a number above 0"),
    **dict.fromkeys("minimum maximum exclusiveMinimum exclusiveMaximum".split(), (is_number, "a number")),
    **dict.fromkeys(
        "minLength maxLength minItems maxItems minProperties maxProperties".split(),
        (_is_count, f"a whole number from 0 to {MAX_COUNT}"),
    ),
    **dict.fromkeys("pattern format $ref $id $anchor".split(), (_is_text, "a string")),
    **dict.fromkeys(ONE, (_is_schema, "a schema")),
    **dict.fromkeys(LISTS, (_lists(_is_schema, 1), "a list of schemas")),
    **dict.fromkeys(NAMED, (_are_named, "an object of schemas")),
}
