"""The prompt of a conversation with tools: by the model's chat template, or in plain words where it shows no tools."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

from kiara_runtime.errors import UserError
from kiara_runtime.tokens import Message, TemplateRefusalError, Tokenizer, chat_ids, read_messages
from kiara_runtime.tools.call_format import PLAIN, CallFormat
from kiara_runtime.tools.definitions import Tool, ToolUse

_EXPLAINED = """You can call these functions:

{tools}

To call one, write its name and its arguments as JSON between tags, and nothing else:
<tool_call>
{{"name": "function", "arguments": {{"argument": "value"}}}}
</tool_call>
The result comes in the next message."""


def tool_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], use: ToolUse | None, format: CallFormat
) -> list[int]:
    """Ids of a conversation up to where the answer begins.

    Earlier calls are in `tool_calls` of the assistant's messages, in OpenAI's form; their results are messages of the
    role `tool`. Raises UserError, naming the field.
    """
    read = [_with_arguments(f"messages[{i}]", message) for i, message in enumerate(read_messages(messages))]
    read = list(_with_names(read))
    if format.native:
        return chat_ids(tokenizer, read, [tool.json() for tool in use.tools] if use else None)
    plain = list(_joined([*_explanation(use.tools if use else ()), *map(_plain, read)]))
    try:
        return chat_ids(tokenizer, plain)
    except TemplateRefusalError:
        if plain[0]["role"] != "system":
            raise
    return chat_ids(tokenizer, list(_joined([{**plain[0], "role": "user"}, *plain[1:]])))


def has_calls(messages: Iterable[Message]) -> bool:
    """Whether a conversation has calls or results."""
    return any(message.get("tool_calls") or message.get("role") == "tool" for message in messages)


def _with_arguments(path: str, message: dict[str, Any]) -> dict[str, Any]:
    """The message with the arguments of its calls as objects, as templates take them."""
    calls: Any = message.get("tool_calls")
    if not calls:
        return message
    if not isinstance(calls, list) or message["role"] != "assistant":
        raise UserError(
            f"{path}.tool_calls", "are not calls of an assistant", "give a list", value=cast("object", calls)
        )
    made = [_call(f"{path}.tool_calls[{i}]", call) for i, call in enumerate(cast("list[Any]", calls))]
    return {**message, "content": message.get("content") or "", "tool_calls": made}


def _call(path: str, given: Any) -> dict[str, Any]:
    call = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    values = cast("dict[str, Any]", call["function"]) if isinstance(call.get("function"), dict) else {}
    if not isinstance(values.get("name"), str):
        remedy = 'give {"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}'
        raise UserError(path, "is not a call", remedy, value=cast("object", given))
    arguments: Any = values.get("arguments")
    try:
        read = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        problem = "are not a JSON object"
        raise UserError(f"{path}.function.arguments", problem, 'give one, such as "{}"', value=arguments)
    function = {"name": values["name"], "arguments": cast("object", read)}
    return {"id": call.get("id"), "type": "function", "function": function}


def _with_names(messages: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Results with the name of the function that they are from, which some templates write."""
    names = dict[str, str]()
    for message in messages:
        names |= {str(call.get("id")): call["function"]["name"] for call in message.get("tool_calls") or ()}
        known = names.get(str(message.get("tool_call_id")))
        yield {"name": known, **message} if message["role"] == "tool" and known else message


def _explanation(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    if not tools:
        return []
    lines = "\n".join(json.dumps(tool.json()["function"], ensure_ascii=False) for tool in tools)
    return [{"role": "system", "content": _EXPLAINED.format(tools=lines)}]


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message without calls and results, which are in its text instead."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = [_written(call["function"]) for call in message.get("tool_calls") or ()]
    if not calls:
        return message
    return {"role": message["role"], "content": "\n".join([*filter(None, [message["content"]]), *calls])}


def _written(function: dict[str, Any]) -> str:
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return f"{PLAIN.opening}{function['name']}{PLAIN.middle}{arguments}{PLAIN.closing}"


def _joined(messages: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The messages; consecutive ones of a system or a user are one, because many templates want turns."""
    held: dict[str, Any] | None = None
    for message in messages:
        role = "system" if message["role"] == "developer" else message["role"]
        if held is not None and held["role"] == role and role in ("system", "user"):
            held = {**held, "content": f"{held['content']}\n\n{message['content']}"}
            continue
        if held is not None:
            yield held
        held = {**message, "role": role}
    if held is not None:
        yield held
