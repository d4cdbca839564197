"""The grammar of an answer that may call tools: text, or calls whose arguments follow their tool's schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, cast

from kiara_runtime.tools.call_format import ID, CallFormat
from kiara_runtime.tools.definitions import Tool, ToolUse

MAX_CALLS = 16  # of one answer
_OPEN = frozenset("additionalProperties unevaluatedProperties patternProperties $ref allOf anyOf oneOf not if".split())


def answer_grammar(use: ToolUse, format: CallFormat, content: str | None = None) -> str:
    """A Lark grammar. content: a Lark expression that an answer without calls follows; None allows any text."""
    special = dict(format.special)
    rules = dict(_call_rules(use, format, special))
    trigger = format.trigger
    rest = format.opening.partition(trigger)[2]
    repeated = ""
    if use.parallel and format.between is not None:
        repeated = f" ({_literal(format.between, special)} call){{0,{MAX_CALLS - 1}}}"
    rules["calls"] = f"{_literal(rest, special)} call{repeated} {_literal(format.closing, special)}".strip()
    begin = _literal(format.opening.partition(trigger)[0] + trigger, special)
    if use.required:
        rules["start"] = f"{begin} calls"
    elif content is not None:
        rules |= {"start": f"content | {begin} calls", "content": content}
    elif not format.tagged:
        # Without a tag nothing but its first character tells a call from text.
        rules |= {"start": f"TEXT | {begin} calls", "TEXT": rf"/([^{re.escape(trigger[0])}\s](.|\n)*)?/"}
    elif trigger in special:
        rules |= {"start": f"TEXT | TEXT {_literal(trigger, special)} calls", "TEXT": _without(trigger)}
    else:
        rules |= {"start": "TEXT | lead calls", "TEXT": _without(trigger)}
        rules["lead[lazy]"] = rf"/(.|\n)*{_escaped(trigger)}/"
    return "%llguidance {}\n" + "".join(f"{name}: {rule}\n" for name, rule in rules.items())


def _call_rules(use: ToolUse, format: CallFormat, special: dict[str, int]) -> Iterator[tuple[str, str]]:
    options = [f"call_{i}" for i in range(len(use.callable))]
    yield "call", " | ".join(options)
    for i, tool in enumerate(use.callable):
        yield f"call_{i}", f"{_literal(tool.name + format.middle, special)} arguments_{i}"
        yield f"arguments_{i}", f"%json {json.dumps(argument_schema(tool))}"


def argument_schema(tool: Tool) -> dict[str, Any]:
    """The tool's schema, as it is held: objects have only the properties that are named, where that is all they have.

    Otherwise a small model writes properties without end. What the narrower schema allows, the tool's allows, too.
    """
    return tool.parameters if _composed(tool.parameters) else _closed(tool.parameters)


def _composed(schema: Any) -> bool:
    """Whether properties of one object may be named in several places: then none of them can be closed."""
    if isinstance(schema, list):
        return any(map(_composed, cast("list[Any]", schema)))
    if not isinstance(schema, dict):
        return False
    held = cast("dict[str, Any]", schema)
    mixed = isinstance(held.get("properties"), dict) and not {"$ref", "anyOf", "oneOf"}.isdisjoint(held)
    return mixed or "allOf" in held or any(map(_composed, held.values()))


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {**cast("dict[str, Any]", schema)}
    for key in ("properties", "$defs", "definitions"):
        if isinstance(made.get(key), dict):
            made[key] = {name: _closed(value) for name, value in made[key].items()}
    for key in ("anyOf", "oneOf", "prefixItems"):
        if isinstance(made.get(key), list):
            made[key] = [_closed(value) for value in made[key]]
    if "items" in made:
        made["items"] = _closed(made["items"])
    if "properties" in made and not _OPEN & made.keys():
        made["additionalProperties"] = False
    return made


def _without(trigger: str) -> str:
    """An expression for text without the trigger."""
    return rf"/(.|\n)*/ & ~/(.|\n)*{_escaped(trigger)}(.|\n)*/"


def _escaped(text: str) -> str:
    return re.sub(r"([^A-Za-z0-9_<>\s])", r"\\\1", text)


def _literal(text: str, special: dict[str, int]) -> str:
    """The text as a Lark expression: special tokens by id, an id of a call by its pattern."""
    names = [*special, ID]
    parts = re.split(f"({'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})", text)
    made = [
        f"<[{special[part]}]>"
        if part in special
        else "/[A-Za-z0-9]{9}/"
        if part == ID
        else json.dumps(part, ensure_ascii=False)
        for part in parts
        if part
    ]
    return " ".join(made)
