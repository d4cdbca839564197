"""Reads an answer piece by piece: its text, and the calls in it.

`call_grammar` holds answers to the format, so that what a call begins with cannot be text. White space right before a
call is not a part of the text.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass

from kiara_runtime.engine import Piece
from kiara_runtime.tools.call_format import ID, PLAIN, CallFormat

_ID = "[A-Za-z0-9]{9}"


@dataclass(frozen=True)
class CallPart:
    """A part of a call. index: of the call in the answer. name: in its first part. arguments: more of their JSON."""

    index: int
    name: str | None
    arguments: str


@dataclass(frozen=True)
class ToolCall:
    """name: of the tool. arguments: JSON text of an object that follows the tool's schema.

    complete: whether the arguments are whole; max_tokens may have cut them off.
    """

    name: str
    arguments: str
    complete: bool = True


class CallReader:
    """Turns the pieces of one answer into texts and parts of calls."""

    def __init__(self, format: CallFormat | None) -> None:
        """format: of calls; None if there are none, so that everything is text."""
        self._state = "plain" if format is None else "text" if format.tagged else "start"
        self._format = format or PLAIN
        self._special = {i: name for name, i in self._format.special}
        self._held, self._calls = "", 0
        self._json = _Object()

    @property
    def calls(self) -> int:
        """How many calls have begun."""
        return self._calls

    def feed(self, piece: Piece) -> list[str | CallPart]:
        """The texts and parts of calls that are certain now."""
        self._held += piece.text + "".join(self._special.get(token, "") for token in piece.tokens)
        found: list[str | CallPart] = []
        while (step := self._step(piece.finish_reason is not None)) is not None:
            found += step
        return found

    def _step(self, last: bool) -> list[str | CallPart] | None:
        """Read some of what is held; None if nothing more can be read."""
        match self._state:
            case "start":
                return self._start(last)
            case "plain":
                text, self._held = self._held, ""
                return [text] if text else None
            case "text":
                return self._text(last)
            case "opening":
                return self._opening()
            case "name":
                return self._call_name()
            case _:
                return self._arguments()

    def _start(self, last: bool) -> list[str | CallPart] | None:
        """Without a tag, the first characters tell whether the answer is calls."""
        head, trigger = self._held.lstrip(), self._format.trigger
        if head.startswith(trigger):
            self._held, self._state = head, "opening"
        elif last or not trigger.startswith(head):
            self._state = "plain"
        else:
            return None
        return []

    def _text(self, last: bool) -> list[str | CallPart] | None:
        trigger = self._format.trigger
        place = self._held.find(trigger)
        if place >= 0:
            text, self._held, self._state = self._held[:place].rstrip(), self._held[place:], "opening"
            return [text] if text else []
        end = len(self._held) - (0 if last else _kept(self._held, trigger))
        text, self._held = self._held[:end], self._held[end:]
        return [text] if text else None

    def _opening(self) -> list[str | CallPart] | None:
        opening = self._format.opening.lstrip() if not self._calls else self._format.between or ""
        match = re.compile(_pattern(opening)).match(self._held)
        if match is None:
            return None
        self._held, self._state = self._held[match.end() :], "name"
        return []

    def _call_name(self) -> list[str | CallPart] | None:
        name, found, rest = self._held.partition(self._format.middle)
        if not found:
            return None
        self._held, self._state, self._json = rest, "arguments", _Object()
        self._calls += 1
        return [CallPart(self._calls - 1, name, "")]

    def _arguments(self) -> list[str | CallPart] | None:
        if not self._held:
            return None
        size = self._json.take(self._held)
        text, self._held = self._held[:size], self._held[size:]
        if self._json.complete:
            self._state = "opening"
        return [CallPart(self._calls - 1, None, text)]


class _Object:
    """Finds the end of a JSON object in a text that comes in parts."""

    def __init__(self) -> None:
        self._depth, self._inside, self._escaped = 0, False, False
        self.complete = False

    def take(self, text: str) -> int:
        """How many of the characters belong to the object."""
        for i, character in enumerate(text):
            if self._inside:
                self._inside = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
            elif character == '"':
                self._inside = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    self.complete = True
                    return i + 1
        return len(text)

    def ends(self, text: str) -> bool:
        """Whether the object ends in the text."""
        self.take(text)
        return self.complete


def _pattern(text: str) -> str:
    return _ID.join(map(re.escape, text.split(ID)))


def _kept(text: str, trigger: str) -> int:
    """How many characters at the end may belong to a call: white space, and the beginning of its tag."""
    words = text.rstrip()
    begun = next((size for size in range(min(len(trigger) - 1, len(text)), 0, -1) if text.endswith(trigger[:size])), 0)
    if begun:
        words = text[: len(text) - begun].rstrip()
    return len(text) - len(words)


def gathered(parts: Iterable[str | CallPart]) -> tuple[str, list[ToolCall]]:
    """The text and the calls that the parts of an answer make."""
    texts, names, arguments = list[str](), list[str](), list[str]()
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if part.name is not None:
            names.append(part.name)
            arguments.append("")
        arguments[part.index] += part.arguments
    calls = [ToolCall(name, text, _Object().ends(text)) for name, text in zip(names, arguments, strict=True)]
    return "".join(texts), calls


def call_id() -> str:
    """Nine letters or digits, because Mistral's chat template takes no other."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
