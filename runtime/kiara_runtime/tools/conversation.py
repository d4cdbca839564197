"""A conversation, made ready for the engine: its prompt, and how answers to it are held and read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kiara_runtime.errors import UserError
from kiara_runtime.sampling import Constraint, SamplingParams, constrain
from kiara_runtime.tokens import Message, Tokenizer, chat_ids, read_messages
from kiara_runtime.tools.call_format import CallFormat, call_format
from kiara_runtime.tools.call_grammar import answer_grammar, argument_schema
from kiara_runtime.tools.definitions import ToolUse
from kiara_runtime.tools.prompt import has_calls, tool_prompt


@dataclass(frozen=True)
class Conversation:
    """prompt: token ids up to where the answer begins. format, constraint: of answers; None if they have no calls."""

    prompt: list[int]
    format: CallFormat | None = None
    constraint: Constraint | None = None


def conversation(
    tokenizer: Tokenizer,
    vocab_size: int,
    eos_token_ids: frozenset[int],
    messages: Sequence[Message],
    use: ToolUse | None,
    params: SamplingParams,
    continued: bool = False,
) -> Conversation:
    """Make a conversation ready. vocab_size: of the model. Raises UserError with the field that is wrong.

    continued: the last message is the beginning of the answer.
    """
    before, begun = _begun(tokenizer, messages) if continued else (messages, [])
    if use is None and not has_calls(before):
        return Conversation([*chat_ids(tokenizer, before), *begun])
    format = call_format(tokenizer, eos_token_ids)
    prompt = [*tool_prompt(tokenizer, before, use, format), *begun]
    if use is None:
        return Conversation(prompt)
    lark = answer_grammar(use, format, _content(use, format, params))
    special = frozenset(token for _, token in format.special)
    try:
        constraint = constrain(tokenizer, vocab_size, eos_token_ids, grammar=lark, special=special)
    except UserError as error:
        raise _cause(tokenizer, vocab_size, eos_token_ids, use, error) from None
    return Conversation(prompt, format, constraint)


def _begun(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[int]]:
    """The messages before the last, and the ids of the last, with which the answer begins."""
    *before, last = read_messages(messages)
    if last["role"] != "assistant" or last.get("tool_calls") or not before:
        problem = "only text of the assistant can be continued"
        raise UserError("messages", problem, "end with a message of the user instead")
    return before, tokenizer.encode(last["content"], after="text")


def _content(use: ToolUse, format: CallFormat, params: SamplingParams) -> str | None:
    """What an answer without calls follows, as Lark."""
    name = next((name for name in ("json_schema", "regex", "grammar") if getattr(params, name) is not None), None)
    if name is None:
        return None
    if name != "json_schema" or (not format.tagged and not use.required):
        remedy = "leave one of them out, or require a call"
        raise UserError("response_format", "cannot be held together with these tools", remedy, value=name)
    return f"%json {params.json_schema}"


def _cause(
    tokenizer: Tokenizer, vocab_size: int, eos_token_ids: frozenset[int], use: ToolUse, error: UserError
) -> UserError:
    """The error of the tool whose schema cannot be held; of all of them together if each one can."""
    for tool in use.callable:
        try:
            constrain(tokenizer, vocab_size, eos_token_ids, json_schema=json.dumps(argument_schema(tool)))
        except UserError as found:
            return found.renamed(f"tools.{tool.name}.parameters{found.field.removeprefix('json_schema')}")
    problem = f"together make a grammar that {error.problem}"
    return UserError("tools", problem, "send fewer of them, or simpler schemas")
