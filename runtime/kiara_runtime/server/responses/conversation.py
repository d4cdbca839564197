"""A request of /v1/responses as the messages, tools and sampling parameters of a conversation."""

from __future__ import annotations

from typing import Any

from kiara_runtime.server.responses import requests as api
from kiara_runtime.tools import ToolUse, tool_use


def messages_of(asked: api.ResponsesRequest) -> list[dict[str, Any]]:
    """The input as messages; consecutive calls are one message of the assistant."""
    if isinstance(asked.input, str):
        return [{"role": "user", "content": asked.input}]
    found: list[dict[str, Any]] = []
    for item in asked.input:
        match item:
            case api.InputCall():
                call = {"id": item.call_id, "function": {"name": item.name, "arguments": item.arguments}}
                if not (found and found[-1]["role"] == "assistant"):
                    found.append({"role": "assistant", "content": ""})
                found[-1].setdefault("tool_calls", []).append(call)
            case api.InputResult():
                found.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
            case _:
                found.append({"role": item.role, "content": _text(item.content)})
    return found


def with_instructions(instructions: str | None, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages after a system message; one that they begin with is joined to it, as templates take only one."""
    if not instructions:
        return messages
    first, rest = messages[0], messages[1:]
    if first["role"] in ("system", "developer"):
        return [{"role": "system", "content": f"{instructions}\n\n{first['content']}"}, *rest]
    return [{"role": "system", "content": instructions}, *messages]


def _text(content: str | list[api.InputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def tools_of(asked: api.ResponsesRequest) -> ToolUse | None:
    """The tools of a request, and which of them may be called. Raises UserError."""
    tools = [{"type": "function", "function": tool.model_dump(exclude={"type"})} for tool in asked.tools or ()]
    choice = asked.tool_choice or "auto"
    named = choice if isinstance(choice, str) else {"type": "function", "function": {"name": choice.name}}
    return tool_use(tools, named, asked.parallel_tool_calls is not False)


def sampling_of(asked: api.ResponsesRequest, most: int) -> dict[str, Any]:
    """Fields of SamplingParams. most: tokens, if the request sets no limit."""
    temperature, top_p = (1.0 if value is None else value for value in (asked.temperature, asked.top_p))
    format = asked.text.format if asked.text else None
    schema = format.schema_ if isinstance(format, api.SchemaFormat) else None
    schema = {"type": "object"} if isinstance(format, api.ObjectFormat) else schema
    held = {} if schema is None else {"json_schema": schema}
    return {"max_tokens": asked.max_output_tokens or most, "temperature": temperature, "top_p": top_p, **held}
