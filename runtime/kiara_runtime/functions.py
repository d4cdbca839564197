"""Lets a model call Python functions: runs those that it asks for, until it answers in text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Unpack

from kiara_runtime.errors import UserError
from kiara_runtime.model import Model
from kiara_runtime.sampling import Sampling
from kiara_runtime.tokens import Message
from kiara_runtime.tools import Choice, ToolCall

MAX_ROUNDS = 8


def run_functions(
    model: Model,
    messages: Sequence[Message],
    functions: Sequence[Callable[..., Any]],
    tool_choice: Choice = "auto",
    parallel_tool_calls: bool = True,
    max_rounds: int = MAX_ROUNDS,
    **sampling: Unpack[Sampling],
) -> list[dict[str, Any]]:
    """The messages that follow a conversation: calls, their results, and at last the model's answer in text.

    functions: annotated Python functions, as `kiara_runtime.tools.functions` takes them. They run here, one after
    another, with arguments that follow their annotations; an exception of one ends the loop. tool_choice,
    parallel_tool_calls: as in `Model.chat`; the former is for the first answer, as the model is free later.
    max_rounds: after so many answers with calls it has to answer in text. Raises UserError for a call that max_tokens
    cuts off.
    """
    known = {function.__name__: function for function in functions}
    added: list[dict[str, Any]] = []
    for turn in range(max_rounds + 1):
        choice = "none" if turn == max_rounds else "auto" if turn else tool_choice
        answer = model.chat([*messages, *added], list(functions), choice, parallel_tool_calls, **sampling)
        if not answer.tool_calls:
            return [*added, {"role": "assistant", "content": answer.text}]
        if answer.finish_reason == "length":
            raise UserError("max_tokens", "ended in the middle of a call", "give more")
        calls = [_message(f"{turn}{i}".zfill(9), call) for i, call in enumerate(answer.tool_calls)]
        added.append({"role": "assistant", "content": answer.text, "tool_calls": calls})
        for asked, call in zip(calls, answer.tool_calls, strict=True):
            result = known[call.name](**json.loads(call.arguments))
            text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
            added.append({"role": "tool", "tool_call_id": asked["id"], "content": text})
    raise AssertionError("the last turn has no tools")


def _message(id: str, call: ToolCall) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
