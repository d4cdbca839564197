"""Turns conversations into the ids of a prompt, by the model's chat template.

Names of special tokens that the template writes become their ids; the same names in a message stay text, even if two
fields, or a field and the template, only spell one together. To tell them apart, the template is rendered again with
a private-use character, the mark, inserted wherever a message may spell such a name. Except for the marks, both texts
must be the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from kiara_runtime.errors import UserError
from kiara_runtime.tokens.template import TemplateRefusalError, clock, render, template_of
from kiara_runtime.tokens.tokenizer import Tokenizer

# Unicode's White_Space; Python's own `strip` takes a few more.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_MARKS = range(0xE000, 0xF900)  # private-use characters
_REASONING = ("reasoning_content", "thinking", "reasoning")
MAX_DEPTH = 64
Message = Mapping[str, Any]

_ASK: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
_TOOL: dict[str, Any] = {
    "name": "look",
    "description": "Look it up.",
    "parameters": {"type": "object", "properties": {}},
}
_TRIALS: dict[str, dict[str, Any]] = {
    "a question": {"messages": _ASK},
    "a system message": {"messages": [{"role": "system", "content": "Be brief."}, *_ASK]},
    "several turns": {"messages": [*_ASK, {"role": "assistant", "content": "Hi."}, *_ASK]},
    "tools": {"messages": _ASK, "tools": [{"type": "function", "function": _TOOL}]},
    "documents": {"messages": _ASK, "documents": [{"title": "A", "text": "B"}]},
}


def chat_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """Ids of a conversation, up to where the assistant's answer begins.

    messages: dictionaries with `role` and `content`, as `read_messages` takes them. tools, documents: used as the
    template sees fit. Raises UserError if the model has no template, or if it fails.
    """
    return ids_of(tokenizer, *chat_text(tokenizer, messages, tools, documents))


def chat_text(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    generation_prompt: bool = True,
) -> tuple[str, str]:
    """The template's text, and the mark that breaks names of special tokens in messages apart; `ids_of` encodes it.

    generation_prompt: end the text where the assistant's answer begins.
    """
    template = template_of(tokenizer.config)
    if template is None:
        raise UserError("chat", "this model has no chat template", "continue a plain prompt instead")
    read = read_messages(messages)
    if "developer" not in template:  # a newer name of the system role
        read = [{**one, "role": "system"} if one["role"] == "developer" else one for one in read]
    values = {"messages": read, "tools": _plain("tools", tools), "documents": _plain("documents", documents)}
    return _rendered(template, values, tokenizer, generation_prompt)


def ids_of(tokenizer: Tokenizer, text: str, mark: str, continued: bool = False) -> list[int]:
    """Ids of a text that `chat_text` made, or of a part of it. continued: the part is not its beginning."""
    special = tokenizer.special_tokens
    ids: list[int] = []
    parts = _pattern(special).split(text) if special else [text]  # every second one is the name of a special token
    for i, part in enumerate(parts):
        if part in special:
            ids.append(special[part])
            continue
        words = part.replace(mark, "")
        if i and parts[i - 1] in tokenizer.strips_after:
            words = words.lstrip(_WHITE_SPACE)
        if i + 1 < len(parts) and parts[i + 1] in tokenizer.strips_before:
            words = words.rstrip(_WHITE_SPACE)
        if words:
            ids += tokenizer.encode(words, after="special" if i else "text" if continued else "nothing")
    return ids


def chat_problems(tokenizer: Tokenizer) -> dict[str, str]:
    """What the model's template cannot do, by kind of conversation; `a question` is among them if it cannot chat.

    Conversations that the template itself refuses, such as those with a system message, do not count.
    """
    template, found = template_of(tokenizer.config), dict[str, str]()
    for name, values in _TRIALS.items() if template else ():
        try:
            _rendered(template or "", {"tools": None, "documents": None, **values}, tokenizer)
        except TemplateRefusalError:
            pass
        except UserError as error:
            found[name] = error.problem
    return found


def can_chat(tokenizer: Tokenizer) -> bool:
    """Whether the model has a chat template that can render a question."""
    return template_of(tokenizer.config) is not None and "a question" not in chat_problems(tokenizer)


def read_messages(messages: Any) -> list[dict[str, Any]]:
    """A copy of a conversation as templates take it, each content one string. Raises UserError with the field.

    content may be a string or a list of `{"type": "text", "text": ...}`, and None if there are `tool_calls`.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise UserError(
            "messages",
            "is not a list of messages",
            "give a list of dictionaries, each with a role and a content",
            value=messages,
        )
    if not messages:
        raise UserError("messages", "it is empty", "give at least one message")
    return [_message(f"messages[{i}]", one) for i, one in enumerate(cast("Sequence[Any]", messages))]


def _message(name: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise UserError(name, "is not a dictionary", "give one with a role and a content", value=given)
    message: dict[str, Any] = _plain(name, given)
    if not isinstance(message.get("role"), str) or not message["role"]:
        raise UserError(f"{name}.role", "is not a role", "give one such as user", value=message.get("role"))
    content = message.get("content")
    if content is not None or not message.get("tool_calls"):
        message["content"] = _text(f"{name}.content", content)
    reasoning = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    if reasoning is not None:  # templates read it under either name
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def _text(name: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise UserError(name, "is not text", "give a str, or a list of text parts", value=cast("object", content))
    texts: list[str] = []
    for i, part in enumerate(cast("list[Any]", content)):
        values = cast("dict[str, Any]", part) if isinstance(part, dict) else {}
        if values.get("type") != "text" or not isinstance(values.get("text"), str):
            raise UserError(
                f"{name}[{i}]", "is not a text part", 'give {"type": "text", "text": ...}', value=cast("object", part)
            )
        texts.append(values["text"])
    return "".join(texts)


def _plain(name: str, value: Any, depth: int = 0) -> Any:
    """A copy of the value in JSON's own types; raises UserError for others."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UserError(name, f"it has a lone surrogate at {error.start}", "remove it") from None
        return str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {_key(name, key): _plain(f"{name}.{key}", item, depth + 1) for key, item in items}
    if depth < MAX_DEPTH and isinstance(value, (list, tuple)):
        return [_plain(f"{name}[{i}]", item, depth + 1) for i, item in enumerate(cast("list[Any]", value))]
    raise UserError(
        name,
        "is not JSON, or nested too deeply",
        "give strings, numbers, lists and dictionaries",
        value=value,
    )


def _key(name: str, key: Any) -> str:
    if not isinstance(key, str):
        raise UserError(name, f"the key {key!r:.60} is not a string", "use strings as keys")
    return key


def _rendered(
    template: str, values: Mapping[str, Any], tokenizer: Tokenizer, generation_prompt: bool = True
) -> tuple[str, str]:
    """The template's text, with names of special tokens from the messages broken apart by a mark; and the mark."""
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    fixed = {
        "add_generation_prompt": generation_prompt,
        "strftime_now": clock(),
        **{name: tokenizer.config[name] for name in names if name in tokenizer.config},
    }
    text = render(template, {**values, **fixed})
    mark = next((chr(code) for code in _MARKS if chr(code) not in text and chr(code) not in template), "")
    if not mark:
        raise UserError("chat", "the messages contain every private-use character", "leave one out")
    guard = _guard(tokenizer.special_tokens, mark)
    guarded = {name: _each_text(value, guard) for name, value in values.items()}
    if guarded == values:
        return text, mark
    marked = render(template, {**guarded, **fixed})
    if marked.replace(mark, "") != text:
        raise UserError(
            "chat", "a message spells the name of a special token that the model's template reacts to", "remove it"
        )
    return marked, mark


def _each_text(value: Any, act: Callable[[str, bool], str], key: str = "") -> Any:
    """Apply `act` to every string, with whether it is a role or type, from which templates build special tokens."""
    if isinstance(value, str):
        return act(value, key in ("role", "type"))
    if isinstance(value, list):
        return [_each_text(item, act) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {name: _each_text(item, act, name) for name, item in cast("dict[str, Any]", value).items()}
    return value


def _guard(special: Mapping[str, int], mark: str) -> Callable[[str, bool], str]:
    """A function that marks a text: in the names of special tokens, and at its ends if it may be a part of one."""
    pattern, longest = _pattern(special), max(map(len, special), default=0)
    heads, tails = _ends(tuple(special))

    def edges(core: str) -> Iterator[str]:
        inside = len(core) < longest and any(core in name for name in special)
        yield mark if inside or any(core[:size] in tails for size in range(1, longest)) else ""
        yield mark if inside or any(core[-size:] in heads for size in range(1, longest)) else ""

    def guarded(text: str, word: bool) -> str:
        core = text.strip()  # templates often strip texts
        if not core or not special:
            return text
        begins = text.index(core)
        before, after = ("", "") if word else edges(core)
        broken = pattern.sub(lambda found: mark.join(found[0]) + mark, core)
        return f"{text[:begins]}{before}{broken}{after}{text[begins + len(core) :]}"

    return guarded


@lru_cache(8)
def _ends(names: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str]]:
    """Every proper prefix and every proper suffix of the names."""
    sizes = [(name, size) for name in names for size in range(1, len(name))]
    return frozenset(name[:size] for name, size in sizes), frozenset(name[-size:] for name, size in sizes)


def _pattern(special: Mapping[str, int]) -> re.Pattern[str]:
    return re.compile(f"({'|'.join(map(re.escape, sorted(special, key=len, reverse=True)))})")
