r"""Translates ECMA 262 regular expressions, which JSON Schema's `pattern` uses, for llguidance's Rust library.

Where programs differ about a class (\W includes é in ECMA but not in Python), only what all of them accept is allowed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_SPACE = r"\t-\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# Members of each class in every program, and in at least one.
_LEAST = {"d": "0-9", "w": "0-9A-Za-z_", "s": _SPACE}
_MOST = {"d": r"\p{Nd}", "w": r"\p{L}\p{N}_", "s": _SPACE + r"\x1c-\x1f\u0085\ufeff"}
_ECMA = {**_LEAST, "s": _SPACE + r"\ufeff"}

_ESCAPE = r"\\(u\{[0-9A-Fa-f]+\}|u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|c[A-Za-z]|[pP]\{[^{}]*\}|.)"
_TOKEN = re.compile(rf"\[(?P<class>\^?(?:\\.|[^\]\\])*)\]|{_ESCAPE}|\{{\d+(?:,\d*)?\}}|\(\?<?[=!]|.", re.DOTALL)
_ITEM = re.compile(rf"{_ESCAPE}|.", re.DOTALL)
_PAIR = re.compile(r"\\u([dD][89abAB][0-9A-Fa-f]{2})\\u([dD][c-fC-F][0-9A-Fa-f]{2})")
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}


@dataclass(frozen=True)
class _Sets:
    """The members of classes. least, most: letter of a class -> its members, as written inside brackets."""

    least: dict[str, str]
    most: dict[str, str]

    def of(self, letter: str, least: bool) -> str:
        if letter.islower():
            return (self.least if least else self.most)[letter]
        return f"[^{(self.most if least else self.least)[letter.lower()]}]"


_AGREED, _EXACT = _Sets(_LEAST, _MOST), _Sets(_ECMA, _ECMA)


def rust_expression(pattern: str, exact: bool = False) -> str:
    """Translate an ECMA 262 expression for Rust. exact: use ECMA's own classes, even where other programs differ.

    Everything else passes unchanged, so the Rust library reports its errors. Raises ValueError for what it lacks.
    """
    sets = _EXACT if exact else _AGREED
    joined = _PAIR.sub(lambda pair: rf"\u{{{_joined(int(pair[1], 16), int(pair[2], 16)):x}}}", pattern)
    return "".join(_token(match, sets) for match in _TOKEN.finditer(joined))


def _joined(high: int, low: int) -> int:
    return 0x10000 + ((high - 0xD800) << 10) + low - 0xDC00


def _token(match: re.Match[str], sets: _Sets) -> str:
    token, escape = match[0], match[2]
    if match["class"] is not None:
        return _class(match["class"], sets)
    if escape is not None:
        what = _escape(escape)
        return _code(what) if isinstance(what, int) else f"[{_members(what, sets, least=True)}]"
    if token == ".":
        return r"[^\n\r\u2028\u2029]"
    if token in ("[", "{", "\\"):
        raise ValueError(f"{token} must be closed, or escaped as \\{token}")
    if token.startswith("(?") and token[-1] in "=!":
        raise ValueError(f"look-around, {token}, is not supported")
    return token


def _class(inside: str, sets: _Sets) -> str:
    negated = inside.startswith("^")
    items = [_item(match) for match in _ITEM.finditer(inside.removeprefix("^"))]
    if not items:
        if negated:
            return r"[\x{0}-\x{10ffff}]"
        raise ValueError("[] matches nothing")
    made = list[str]()
    while items:
        first, *rest = items
        if isinstance(first, int) and len(rest) > 1 and rest[0] == ord("-") and isinstance(rest[1], int):
            if rest[1] < first:
                raise ValueError(f"[{inside}] has a range that ends before it begins")
            made.append(f"{_code(first)}-{_code(rest[1])}")
            items = rest[2:]
        else:
            made.append(_code(first) if isinstance(first, int) else _members(first, sets, least=not negated))
            items = rest
    return f"[{'^' * negated}{''.join(made)}]"


def _item(match: re.Match[str]) -> int | str:
    """An item of a class: a code point, or a class within it."""
    if match[1] is None:
        return ord(match[0])
    return 8 if match[1] == "b" else _escape(match[1])


def _escape(escape: str) -> int | str:
    """The meaning of what follows a backslash: a code point, or a class."""
    letter, digits = escape[0], escape[1:].strip("{}")
    if escape in "dDwWsS" or (letter in "pP" and digits):
        return escape
    if letter in "ux" and digits:
        return int(digits, 16)
    if letter == "c" and digits:
        return ord(digits) % 32
    if escape in _CONTROLS:
        return _CONTROLS[escape]
    if escape.isalnum():
        raise ValueError(f"\\{escape} is not supported")
    return ord(escape)


def _members(what: str, sets: _Sets, least: bool) -> str:
    return f"\\{what}" if what[0] in "pP" else sets.of(what, least)


def _code(code: int) -> str:
    return rf"\x{{{code:x}}}"
