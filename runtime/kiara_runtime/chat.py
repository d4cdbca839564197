"""Chat templates: messages to the ids of a prompt.

A template comes with the model and is as untrusted as the rest of it: it is rendered in Jinja's immutable
sandbox, its size, output and time bounded. Names of special tokens in the template become their ids;
the same names in a message stay text.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kiara_runtime.errors import UserError
from kiara_runtime.tokenizer import Tokenizer

MAX_TEMPLATE_CHARACTERS = 1 << 16
MAX_RENDERED_CHARACTERS = 1 << 22
MAX_SECONDS, MAX_MEMORY_KIB = 2, 128 << 10
_MARKS = [
    chr(code) for code in range(0xE000, 0xF900)
]  # private-use characters, one of which breaks special tokens' names apart
Message = Mapping[str, str]


def chat_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation, up to where the assistant's answer begins.

    messages: dictionaries with `role` and `content`. Raises UserError where the model has no template, or one
    that fails on these messages.
    """
    template = tokenizer.config.get("chat_template")
    if not isinstance(template, str) or not template:
        raise UserError("chat: this model has no chat template; continue a plain prompt instead")
    special = "|".join(map(re.escape, sorted(tokenizer.special_tokens, key=len, reverse=True)))
    texts = template + "".join(str(value) for message in messages for value in message.values())
    mark = next((mark for mark in _MARKS if mark not in texts), "")
    if not mark:
        raise UserError("chat: the messages hold every private-use character there is; leave one out")
    safe = [{key: _broken_apart(str(value), special, mark) for key, value in message.items()} for message in messages]
    text = _render(template, safe, tokenizer.config)
    ids: list[int] = []
    for part in re.split(f"({special})", text) if special else [text]:
        if part in tokenizer.special_tokens:
            ids.append(tokenizer.special_tokens[part])
        elif part:
            ids += tokenizer.encode(part.replace(mark, ""))
    return ids


def _broken_apart(text: str, special: str, mark: str) -> str:
    return re.sub(special, lambda found: found[0][0] + mark + found[0][1:], text) if special else text


def _render(template: str, messages: list[dict[str, str]], config: Mapping[str, Any]) -> str:
    try:
        import jinja2
    except ImportError:
        raise UserError("chat: templates need the package jinja2; pip install 'kiara-runtime[chat]'") from None
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise UserError(f"chat: a template of {len(template)} characters is longer than any should be")
    names = {key: config[key] for key in ("bos_token", "eos_token", "pad_token", "unk_token") if key in config}
    try:
        compiled = _sandbox().from_string(template)
        with _bounded():
            parts, size = list[str](), 0
            for part in compiled.generate(messages=messages, add_generation_prompt=True, **names):
                parts.append(part)
                size += len(part)
                if size > MAX_RENDERED_CHARACTERS:
                    raise UserError("chat: the template's output is longer than any prompt")
        return "".join(parts)
    except (jinja2.TemplateError, TypeError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"chat: the model's template fails on these messages ({error})") from None


def _sandbox() -> Any:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        """Without products that could fill the memory; `range` is bounded by Jinja's sandbox itself."""

        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            raise UserError(f"chat: the template computes with {operator}, which is not supported")

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals.update(raise_exception=_refuse)  # pyright: ignore[reportUnknownMemberType]
    return environment


@contextmanager
def _bounded() -> Generator[None]:
    """Stops Python code of this thread that takes more time or memory than a template may."""
    end, memory = time.monotonic() + MAX_SECONDS, _peak_kib() + MAX_MEMORY_KIB

    def watch(frame: Any, event: str, argument: Any) -> Any:
        if time.monotonic() > end or _peak_kib() > memory:
            raise UserError(f"chat: the template takes more than {MAX_SECONDS} s or {MAX_MEMORY_KIB >> 10} MiB")
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)


def _peak_kib() -> int:
    """Peak memory of the process; on Windows, which does not tell, only time bounds a template."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _refuse(message: object) -> str:
    raise UserError(f"chat: the model's template refuses these messages: {message}")
