"""How a model writes its calls, read from its chat template.

A template is rendered with a call that it has never seen, and the text around the call's name and arguments is the
format: `<tool_call>` and JSON for Qwen, SmolLM3 and Granite 4, bare JSON for Llama 3, `<|tool_call|>` and a list for
Granite 3, `[TOOL_CALLS]` for Mistral. A template without tools, or one that writes arguments in another way than as
JSON, gets a plain format, which `kiara_runtime.tools.prompt` explains to the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from kiara_runtime.errors import UserError
from kiara_runtime.tokens import Tokenizer, chat_text
from kiara_runtime.tools.definitions import Tool

ID = "probecall"  # Mistral's template wants nine letters or digits
_NAMES, _ARGUMENTS = ("probe_alpha", "probe_beta"), {"probe_key": "probe value"}
_ASK = {"role": "user", "content": "Hello"}
_TAG = re.compile(r"\s*(<[^<>\s]+>|\[[A-Z_]+\])")


@dataclass(frozen=True)
class CallFormat:
    """The text of calls: opening, name, middle, arguments, between, name, middle, arguments, closing.

    between: None if a message has one call only. Texts may contain `ID`, which stands for nine letters or digits.
    native: whether the template shows tools and results itself. special: special tokens in these texts, by name.
    """

    opening: str
    middle: str
    between: str | None
    closing: str
    native: bool
    special: tuple[tuple[str, int], ...] = ()

    @property
    def trigger(self) -> str:
        """What no text before a call contains: the tag that opens it, or else the first characters of the call."""
        tag = _TAG.match(self.opening)
        return tag[1] if tag else self.opening.lstrip()

    @property
    def tagged(self) -> bool:
        """Whether calls begin with a tag, so that text may come before them."""
        return _TAG.match(self.opening) is not None


PLAIN = CallFormat(
    opening='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    between='}\n</tool_call>\n<tool_call>\n{"name": "',
    closing="}\n</tool_call>",
    native=False,
)


def call_format(tokenizer: Tokenizer, eos_token_ids: Iterable[int]) -> CallFormat:
    """The format of the tokenizer's chat template, found at the first call. Thread-safe.

    Raises UserError if there is no template that can chat.
    """
    if tokenizer not in _formats:
        _formats[tokenizer] = _call_format(tokenizer, frozenset(eos_token_ids))
    return _formats[tokenizer]


_formats: WeakKeyDictionary[Tokenizer, CallFormat] = WeakKeyDictionary()


def _call_format(tokenizer: Tokenizer, eos_token_ids: frozenset[int]) -> CallFormat:
    tools = [Tool(name, "", {"type": "object", "properties": {}}).json() for name in _NAMES]
    asked = _text(tokenizer, [_ASK], tools, True)
    if asked == _text(tokenizer, [_ASK], None, True):
        return PLAIN  # the template does not show tools
    try:
        one = _parts(tokenizer, asked, _calling(_NAMES[:1]), tools, eos_token_ids)
    except UserError:
        return PLAIN
    if one is None:
        return PLAIN
    try:
        two = _parts(tokenizer, asked, _calling(_NAMES), tools, eos_token_ids)
    except UserError:  # such as Llama's, which refuses a second call
        two = None
    texts = "".join(one)
    special = tuple((name, i) for name, i in tokenizer.special_tokens.items() if name in texts)
    same = two is not None and len(two) == 5 and (two[0], two[1], two[4]) == one and two[3] == one[1]
    return CallFormat(one[0], one[1], two[2] if two and same else None, one[2], True, special)


def _calling(names: tuple[str, ...]) -> dict[str, Any]:
    calls = [{"id": ID, "type": "function", "function": {"name": name, "arguments": _ARGUMENTS}} for name in names]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _parts(
    tokenizer: Tokenizer, asked: str, calling: dict[str, Any], tools: list[dict[str, Any]], eos: frozenset[int]
) -> tuple[str, ...] | None:
    """The texts around names and arguments of an assistant's calls; None if the arguments are not written as JSON."""
    text = _text(tokenizer, [_ASK, calling], tools, False)
    if not text.startswith(asked):
        return None
    rest, parts = text[len(asked) :], list[str]()
    for call in calling["tool_calls"]:
        before, _, rest = rest.partition(call["function"]["name"])
        found = _arguments(rest)
        if found is None:
            return None
        parts += [before, rest[: found[0]]]
        rest = rest[found[1] :]
    ends = [name for name, i in tokenizer.special_tokens.items() if i in eos]
    closing = re.split("|".join(map(re.escape, ends)), rest)[0] if ends else rest
    return (*parts, closing.rstrip())


def _arguments(text: str) -> tuple[int, int] | None:
    """Where the arguments begin and end in a text."""
    for match in re.finditer(r"\{", text):
        try:
            value, end = json.JSONDecoder().raw_decode(text, match.start())
        except ValueError:
            continue
        if value == _ARGUMENTS:
            return match.start(), end
    return None


def _text(tokenizer: Tokenizer, messages: list[dict[str, Any]], tools: Any, generation_prompt: bool) -> str:
    text, mark = chat_text(tokenizer, messages, tools, generation_prompt=generation_prompt)
    return text.replace(mark, "")
