"""Renders chat templates as `transformers` does: the same text, or an error.

A template comes with the model and is as untrusted as the rest of it. So it runs in Jinja's immutable sandbox, with
limits on its own CPU time and on the total size of the values that it makes. Neither depends on what other threads
do. The limits hold because values are made only by operators, calls, filters, joins and output, each of which is
counted here, and because an operation whose result can be much larger than its inputs is checked before it runs.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, cast

from kiara_runtime.errors import UserError

MAX_TEMPLATE_CHARACTERS = 1 << 16
MAX_RENDERED_CHARACTERS = 1 << 22
MAX_WORK = 1 << 27  # characters and items of all the values that one rendering makes
MAX_SECONDS = 2.0  # of this thread's CPU time
ITEM = 256  # characters that an item counts for when a list is spelled out
MAX_WIDTH = 10_000  # to which text is padded, indented or split
MAX_INTEGER_BITS = 4096
# Methods of str and filters whose result is as long as a numeric argument says.
_BY_WIDTH = frozenset("center ljust rjust zfill expandtabs indent wordwrap truncate tojson batch slice".split())
# Filters that pass on a value's items and never convert them to text.
_PASS_ON = frozenset(
    "abs attr batch count d default dictsort first float groupby int items last length list map max min random "
    "reject rejectattr reverse round select selectattr slice sort sum unique".split()
)
_WIDE_FORMAT = re.compile(r"\d{5}|[*]|\{[^{}]*\{")  # a width of five digits, or one that is itself a value

_work = threading.local()


class TemplateRefusalError(UserError):
    """The template itself refuses these messages."""


def template_of(config: Mapping[str, Any]) -> str | None:
    """The chat template of a tokenizer_config.json; of several, the one named `default`."""
    template = config.get("chat_template")
    if isinstance(template, list):
        entries = [cast("dict[str, Any]", entry) for entry in cast("list[Any]", template) if isinstance(entry, dict)]
        template = next((entry.get("template") for entry in entries if entry.get("name") == "default"), None)
    elif isinstance(template, dict):
        template = cast("dict[str, Any]", template).get("default")
    return template if isinstance(template, str) and template else None


def clock() -> Callable[[str], str]:
    """A `strftime_now` with a fixed time, so that a template gives the same text at every rendering."""
    now = datetime.now()

    def strftime_now(format: str) -> str:
        if len(format) > MAX_WIDTH:
            raise _too_much()
        return now.strftime(format)

    return strftime_now


def render(template: str, values: Mapping[str, Any]) -> str:
    """Render a template. values: `messages` and the template's other variables.

    Raises UserError if it fails, refuses these values or exceeds a limit.
    """
    try:
        from jinja2 import TemplateError
    except ImportError:
        raise UserError("chat", "templates need the package jinja2", "pip install 'kiara-runtime[chat]'") from None
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise UserError(
            "chat",
            f"the model's template has {len(template)} characters, more than {MAX_TEMPLATE_CHARACTERS}",
            "send a plain prompt",
        )
    try:
        with _bounded():
            parts, size = list[str](), 0
            for part in _compiled(template).generate(values):
                parts.append(part)
                size += len(part)
                if size > MAX_RENDERED_CHARACTERS:
                    raise UserError(
                        "chat",
                        f"the template's output has more than {MAX_RENDERED_CHARACTERS} characters",
                        "send fewer messages, or a plain prompt",
                    )
            return "".join(parts)
    except UserError:
        raise
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            "chat", f"the model's template fails on these messages ({_line(error)})", "send others, or a plain prompt"
        ) from None
    except (RecursionError, MemoryError):
        raise _too_much() from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _too_much() -> UserError:
    return UserError(
        "chat",
        "the model's template takes too much time or memory",
        "send fewer messages, or a plain prompt",
    )


@lru_cache(8)
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


@lru_cache(1)
def _environment() -> Any:
    from jinja2 import nodes
    from jinja2.compiler import CodeGenerator, Frame
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Counted(CodeGenerator):
        def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
            self.write("environment.concat(tuple(map(environment.spelled, (")
            for part in node.nodes:
                self.visit(part, frame)
                self.write(", ")
            self.write("))))")

    class Generation(Extension):
        """{% generation %}: marks the assistant's part for training; no effect here."""

        tags = {"generation"}  # noqa: RUF012 - required by Jinja

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("said"), [], [], body).set_lineno(line)

        def said(self, caller: Callable[[], str]) -> str:
            return caller()

    class Sandbox(ImmutableSandboxedEnvironment):
        code_generator_class = Counted
        intercepted_binops = frozenset(("+", "*", "**", "%"))
        concat = staticmethod(_joined)  # pyright: ignore[reportAssignmentType]
        spelled = staticmethod(_spelled)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operator(operator, left, right)
            return _counted(super().call_binop(context, operator, left, right))

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
            name, owner = getattr(__obj, "__name__", ""), getattr(__obj, "__self__", None)
            _check_call(str(name), owner, args, kwargs)
            return _counted(super().call(__context, __obj, *args, **kwargs))

        def wrap_str_format(self, value: Any) -> Any:
            wrapper = super().wrap_str_format(value)
            if wrapper is not None and _WIDE_FORMAT.search(value.__self__):
                raise _too_much()
            return wrapper

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            return attr not in ("translate", "maketrans") and super().is_safe_attribute(obj, attr, value)

    environment: Any = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], finalize=_spelled, optimized=False
    )
    environment.filters.update({name: _counting(name, act) for name, act in environment.filters.items()})
    environment.filters["tojson"] = _counting("tojson", _tojson)
    environment.globals["raise_exception"] = _refuse
    del environment.globals["lipsum"]
    return environment


def _refuse(message: object) -> str:
    raise TemplateRefusalError("chat", f"the model's template refuses these messages: {message}", "send others")


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As in `transformers`; Jinja's own escapes for HTML and sorts keys."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _counting(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(act)  # keeps the attributes that tell Jinja what to pass
    def counted(*args: Any, **kwargs: Any) -> Any:
        given = args[1:] if hasattr(act, "jinja_pass_arg") else args
        owner = given[0] if given else None
        if name not in _PASS_ON:
            for value in (*given, *kwargs.values()):
                _spelled(value)
        _check_call(name, owner, given[1:], kwargs)
        return _counted(act(*args, **kwargs))

    return counted


def _check_operator(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation whose result would be far too large, before it runs."""
    whole = isinstance(left, int) and isinstance(right, int)
    if operator == "%" and isinstance(left, str):
        if _WIDE_FORMAT.search(left):
            raise _too_much()
        _spelled(right)
    elif operator in ("*", "**") and whole:
        bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * abs(right)
        if bits > MAX_INTEGER_BITS:
            raise _too_much()
    elif operator == "*":
        number, items = (left, right) if isinstance(left, int) else (right, left)
        if isinstance(number, int) and number * _length(items) > MAX_RENDERED_CHARACTERS:
            raise _too_much()


def _check_call(name: str, owner: Any, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    """The same for method calls and filters. owner: the method's object, or the filtered value."""
    given = [*args, *kwargs.values()]
    if name in _BY_WIDTH:
        for value in given:
            if (isinstance(value, int) and value > MAX_WIDTH) or (isinstance(value, str) and len(value) > MAX_WIDTH):
                raise _too_much()
    elif name == "format" and isinstance(owner, str) and _WIDE_FORMAT.search(owner):
        raise _too_much()
    elif name == "replace" and len(given) >= 2 and isinstance(owner, str):
        if owner.count(str(given[0])) * len(str(given[1])) > MAX_RENDERED_CHARACTERS:
            raise _too_much()
    elif name == "join":  # the method of a string with a list, or the filter of a list with a separator
        sizes = sorted((_length(owner), *map(_length, given[:1])))
        if len(sizes) == 2 and sizes[0] * sizes[1] > MAX_WORK:
            raise _too_much()


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0


def _counted(value: Any) -> Any:
    """Subtract the value's size from what this rendering may still make; return the value."""
    _work.left -= 1 + _length(value)
    if _work.left < 0:
        raise _too_much()
    return value


def _spelled(value: Any) -> Any:
    """Count a value that is about to become text, with all it contains; return it.

    A list that contains another one many times becomes long only then.
    """
    if not isinstance(value, str):
        waiting: list[Any] = [value]
        while waiting:
            inner = _counted(waiting.pop())
            _work.left -= ITEM
            if isinstance(inner, Mapping):
                waiting += [*cast("Mapping[Any, Any]", inner).keys(), *cast("Mapping[Any, Any]", inner).values()]
            elif isinstance(inner, (list, tuple, set, frozenset)):
                waiting += cast("list[Any]", inner)
    return value


def _joined(parts: Iterable[Any]) -> str:
    texts = list(map(str, parts))
    _counted(range(sum(map(len, texts))))
    return "".join(texts)


@contextmanager
def _bounded() -> Generator[None]:
    """Stop Python code of this thread that takes more time than a template may."""
    end = time.thread_time() + MAX_SECONDS
    _work.left = MAX_WORK

    def watch(frame: Any, event: str, argument: Any) -> Any:
        if time.thread_time() > end:
            raise _too_much()
        return watch if frame.f_code.co_filename == "<template>" else None  # elsewhere checking at calls is enough

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)
