"""Tools as a request defines them, in OpenAI's form, and which of them the model may or must call."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from kiara_runtime.errors import UserError
from kiara_runtime.tools.functions import function_definition

MAX_TOOLS = 128
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
Choice = Literal["auto", "none", "required"] | Mapping[str, Any]
Definition = Mapping[str, Any] | Callable[..., Any]


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. parameters: a JSON Schema of its arguments, which are an object."""

    name: str
    description: str
    parameters: dict[str, Any]

    def json(self) -> dict[str, Any]:
        """OpenAI's form, which chat templates take, too."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolUse:
    """tools: those that the model is told of. callable: those that it may call, which are all of them or one.

    required: it must call one, and writes no text. parallel: it may call several at once.
    """

    tools: tuple[Tool, ...]
    callable: tuple[Tool, ...]
    required: bool
    parallel: bool


def tool_use(tools: Sequence[Definition] | None, choice: Choice = "auto", parallel: bool = True) -> ToolUse | None:
    """The tools of a request; None if it has none, or may not call them.

    tools: `{"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}`, or annotated Python
    functions. choice: "auto", "none", "required", or `{"type": "function", "function": {"name": ...}}` to require one.
    Raises UserError.
    """
    read = tuple(_tool(f"tools[{i}]", tool) for i, tool in enumerate(tools or ()))
    if len(read) > MAX_TOOLS:
        raise UserError("tools", f"{len(read)} are too many", f"give {MAX_TOOLS} at most")
    names = [tool.name for tool in read]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"tools[{i}].function.name", "names two tools", "give each its own name", value=name)
    if choice == "none" or (choice == "auto" and not read):
        return None
    if not read:
        raise UserError("tool_choice", "there are no tools", "give tools, or leave it out", value=choice)
    if choice in ("auto", "required"):
        return ToolUse(read, read, choice == "required", parallel)
    wanted = _named(choice)
    chosen = tuple(tool for tool in read if tool.name == wanted)
    if not chosen:
        raise UserError("tool_choice", "is not one of the tools", f"use {', '.join(names)}", value=wanted)
    return ToolUse(read, chosen, True, False)


def _named(choice: Any) -> str:
    name = _object(_object(choice).get("function")).get("name")
    if not isinstance(name, str):
        remedy = 'use auto, none, required, or {"type": "function", "function": {"name": ...}}'
        raise UserError("tool_choice", "is not a choice", remedy, value=choice)
    return name


def _tool(path: str, given: Any) -> Tool:
    tool = function_definition(given) if callable(given) else _object(given)
    function = _object(tool.get("function"))
    if not function or tool.get("type", "function") != "function":
        remedy = 'give {"type": "function", "function": {"name": ..., "parameters": ...}}'
        raise UserError(path, "is not a function", remedy, value=given)
    name, description = function.get("name"), function.get("description") or ""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        remedy = "use 1 to 64 letters, digits, underscores and hyphens"
        raise UserError(f"{path}.function.name", "is not a name", remedy, value=name)
    if not isinstance(description, str):
        raise UserError(f"{path}.function.description", "is not text", "give a string", value=description)
    return Tool(name, description, _parameters(f"{path}.function.parameters", function.get("parameters")))


def _parameters(path: str, given: Any) -> dict[str, Any]:
    schema = _object(given)
    if not (given is None or isinstance(given, Mapping)) or schema.get("type", "object") != "object":
        raise UserError(
            path, "is not the schema of an object", 'give {"type": "object", ...}', value=cast("object", given)
        )
    return {"properties": {}, **copy.deepcopy(schema), "type": "object"}


def _object(value: Any) -> dict[str, Any]:
    return dict(cast("Mapping[str, Any]", value)) if isinstance(value, Mapping) else {}
