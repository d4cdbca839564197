"""Conversations to learn from: records read and checked, and their token ids, of which only the answers are learned.

A record has `messages`, a list of dictionaries with `role` and `content`, or `prompt` and `completion` as text; a
preference has `prompt`, `chosen` and `rejected`. An answer is what the model would generate: from where the chat
template's prompt for it ends, up to its end-of-text token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kiara.data.bad_text import BadTextError
from kiara.data.token_ids import TokenIds
from kiara_runtime.errors import UserError
from kiara_runtime.tokens import Message, Tokenizer, chat_text, ids_of, read_messages

ROLES = ("system", "developer", "user", "assistant", "tool")
ANSWER = "assistant"
PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}Assistant:\n{{ message['content'] }}"
    "{{ eos_token }}{% elif message['role'] == 'user' %}User:\n{{ message['content'] }}"
    "{% else %}{{ message['role'] }}:\n{{ message['content'] }}{% endif %}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)


def conversation_text(name: str, record: Mapping[str, Any]) -> Iterator[str]:
    """The conversation of a record as JSON, to be split and compared like text. Raises BadTextError with its reason."""
    kept = {"conversations": [_checked(name, conversation_of(name, record))], "tools": record.get("tools")}
    yield json.dumps(kept, ensure_ascii=False)


def preference_text(name: str, record: Mapping[str, Any]) -> Iterator[str]:
    """The conversations of a record that end in its chosen and in its rejected answer, as JSON."""
    if not {"chosen", "rejected"} <= record.keys():
        problem = f"has no `chosen` and `rejected`{_fields(record)}"
        raise BadTextError(name, problem, "rename its fields, or remove the line", "no preference")
    asked = {"prompt": record.get("prompt", [])}
    pair = [
        _checked(f"{name}: {kind}", conversation_of(f"{name}: {kind}", {**asked, "completion": record[kind]}))
        for kind in ("chosen", "rejected")
    ]
    if pair[0] == pair[1]:
        raise BadTextError(name, "chosen and rejected are the same", "remove the line", "no preference")
    yield json.dumps({"conversations": pair, "tools": record.get("tools")}, ensure_ascii=False)


def _checked(name: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages if they ask something and answer it; raises BadTextError with its reason."""
    if messages[0]["role"] == ANSWER:
        raise BadTextError(name, "begins with an answer", "add what was asked, or remove the line", "nothing asked")
    answers = 0
    for i, message in enumerate(messages):
        if message["role"] not in ROLES:
            problem, remedy = f"has the unknown role {message['role']!r:.40}", f"use one of {', '.join(ROLES)}"
            raise BadTextError(f"{name}: messages[{i}]", problem, remedy, "unknown roles")
        if message["role"] == ANSWER:
            answers += 1
            if not (message.get("content") or "").strip() and not message.get("tool_calls"):
                raise BadTextError(
                    f"{name}: messages[{i}]", "is an empty answer", "fix or remove the line", "empty answers"
                )
    if not answers:
        raise BadTextError(name, "has no answer of the assistant", "add one, or remove the line", "no answer")
    return messages


def conversation_of(name: str, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of a record; raises BadTextError if it has none."""
    try:
        return read_messages(_messages(name, record))
    except BadTextError:
        raise
    except UserError as error:
        raise BadTextError(f"{name}: {error.field}", error.problem, error.remedy, "not a conversation") from None


def _messages(name: str, record: Mapping[str, Any]) -> Any:
    if "messages" in record:
        return record["messages"]
    if not {"prompt", "completion"} <= record.keys():
        problem = f"has neither `messages` nor `prompt` and `completion`{_fields(record)}"
        raise BadTextError(name, problem, "rename its fields, or remove the line", "not a conversation")
    asked, answered = record["prompt"], record["completion"]
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    if isinstance(answered, str):
        answered = [{"role": ANSWER, "content": answered}]
    return [*asked, *answered] if isinstance(asked, list) and isinstance(answered, list) else None


def conversation_ids(
    tokenizer: Tokenizer, token_ids: TokenIds, messages: Sequence[Message], tools: Any = None
) -> tuple[list[int], list[bool]]:
    """Ids of a conversation, and whether each belongs to an answer.

    Text is cut where an answer begins and ends, so that a question has the ids that it has when the model is asked.
    Raises UserError if the chat template does not tell where answers are.
    """
    text, mark = chat_text(tokenizer, messages, tools, generation_prompt=False)
    ids: list[int] = []
    learned: list[bool] = []
    end = 0

    def add(until: int, answer: bool) -> None:
        part = ids_of(tokenizer, text[end:until], mark, continued=end > 0)
        length = next((i + 1 for i, token in enumerate(part) if token in token_ids.eos), 0)
        if answer and not length:
            raise _unmarked("ends an answer without an end-of-text token, so the model would not learn to stop")
        ids.extend(part)
        learned.extend(answer and i < length for i in range(len(part)))

    for i, message in enumerate(messages):
        if message["role"] == ANSWER:
            begin = _prefix(tokenizer, messages[:i], tools, text, mark, generation_prompt=True)
            add(begin, answer=False)
            end = begin
            until = _prefix(tokenizer, messages[: i + 1], tools, text, mark, generation_prompt=False)
            add(until, answer=True)
            end = until
    add(len(text), answer=False)
    return ids, learned


def with_turn_end(tokenizer: Tokenizer, token_ids: TokenIds) -> TokenIds:
    """The ids that end a text, with the special token that ends an answer in the chat template, if none of them does.

    Templates of instruction-tuned models often end a turn by another token than a document.
    """
    trial = [{"role": "user", "content": "Hello"}, {"role": ANSWER, "content": "Hello"}]
    asked, _ = chat_text(tokenizer, trial[:1])
    text, mark = chat_text(tokenizer, trial, generation_prompt=False)
    part = ids_of(tokenizer, text[len(asked) :], mark, continued=True)
    if token_ids.eos.intersection(part):
        return token_ids
    special = set(tokenizer.special_tokens.values())
    return TokenIds(token_ids.bos, token_ids.eos | set([token for token in part if token in special][:1]))


def _prefix(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Any, text: str, mark: str, generation_prompt: bool
) -> int:
    """Length of the first messages' text, which must begin the whole text."""
    part, other = chat_text(tokenizer, messages, tools, generation_prompt=generation_prompt)
    part = part.replace(other, mark)
    if not text.startswith(part):
        raise _unmarked("writes a conversation in another way once it goes on, so answers cannot be told from the rest")
    return len(part)


def _unmarked(problem: str) -> UserError:
    return UserError("chat template", problem, "give another with --set data.chat_template=FILE")


def _fields(record: Mapping[str, Any]) -> str:
    """The names of a record's fields, for an error."""
    return f" (it has {', '.join(map(repr, list(record)[:5]))})"[:200] if record else ""
