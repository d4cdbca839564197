"""Python functions as tools: their definitions, from annotations and docstrings."""

from __future__ import annotations

import enum
import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, Union

from kiara_runtime.errors import UserError

_SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean"}


def function_definition(function: Callable[..., Any]) -> dict[str, Any]:
    """OpenAI's definition of a Python function.

    Parameters need annotations: str, int, float, bool, list[...], dict[str, ...], Literal, an Enum, or a union of these
    and None. One with a default may be left out. The description is the docstring; a line `name: text` in it describes
    a parameter. Raises UserError for what JSON cannot carry.
    """
    name = getattr(function, "__name__", type(function).__name__)
    text = inspect.getdoc(function) or ""
    hints = typing.get_type_hints(function)
    properties, required = dict[str, Any](), list[str]()
    for parameter in inspect.signature(function).parameters.values():
        path = f"{name}({parameter.name})"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UserError(path, "cannot be passed by name", "give it a name and an annotation")
        if parameter.name not in hints:
            raise UserError(path, "has no annotation", "add one, such as str")
        properties[parameter.name] = _schema(path, hints[parameter.name])
        if told := re.search(rf"^\s*{parameter.name}: (.+)$", text, re.MULTILINE):
            properties[parameter.name]["description"] = told[1].strip()
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": text, "parameters": parameters}}


def _schema(path: str, hint: Any) -> dict[str, Any]:
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [{"type": "null"} if each is type(None) else _schema(path, each) for each in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": _schema(path, arguments[0])}
    if origin is dict and arguments[0] is str:
        return {"type": "object", "additionalProperties": _schema(path, arguments[1])}
    if inspect.isclass(hint) and issubclass(hint, enum.Enum):
        return {"enum": [one.value for one in hint]}
    raise UserError(
        path, f"is annotated as {hint}, which JSON cannot carry", "use str, int, float, bool or a list of one"
    )
