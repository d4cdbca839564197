"""Checks of sampling parameters: each takes a field's name and the value given, and returns the value to store or
raises UserError.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, cast

from kiara_runtime.errors import UserError

MOST_IDS = 1 << 31
MOST_SOURCE_BYTES = 1 << 20
Check = Callable[[str, Any], Any]  # (a field's name, the value given) -> the value to store, or UserError


def check_integer(name: str, value: object, least: int, most: int) -> int:
    """`value` as an int; raises UserError unless it is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
        raise _refusal(name, value, f"give a whole number from {least} to {most}")
    return int(value)


def _refusal(name: str, value: object, remedy: str) -> UserError:
    return UserError(name, "cannot be used", remedy, value=value)


def whole_number(least: int, most: int) -> Check:
    return lambda name, value: check_integer(name, value, least, most)


def count_or_off(name: str, value: object) -> int:
    """A count; -1 becomes 0, as some programs use -1 for "off"."""
    return max(0, check_integer(name, value, -1, MOST_IDS))


def real_number(least: float, most: float, above: bool = False) -> Check:
    def check(name: str, value: Any) -> float:
        number: Any = math.nan if isinstance(value, bool) or not isinstance(value, Real) else value
        if not least <= number <= most or (above and float(number) == least):  # NaN compares as false
            raise _refusal(name, value, f"give a number {'above' if above else 'from'} {least:g} to {most:g}")
        return float(number)

    return check


def optional(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def flag(name: str, value: object) -> bool:
    if type(value) is not bool:
        raise _refusal(name, value, "give True or False")
    return value


def drawn_seed(name: str, value: object) -> int:
    return secrets.randbits(32) if value is None else check_integer(name, value, 0, (1 << 63) - 1)


def texts(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        value = () if value is None else (value,)
    texts: tuple[Any, ...] = tuple(cast("Iterable[Any]", value))
    if len(texts) > 16:
        raise _refusal(name, texts, "give at most 16 strings")
    for i, text in enumerate(texts):
        if type(text) is not str or not text:
            raise _refusal(name if len(texts) == 1 else f"{name}[{i}]", text, "give a string that is not empty")
    return texts


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """The ids, ascending and without duplicates."""
    try:
        ids: list[Any] = [] if value is None else list(value)
    except TypeError:
        raise _refusal(name, value, "give a list of token ids") from None
    if isinstance(value, (str, bytes, Mapping)):
        raise _refusal(name, ids, "give a list of token ids")
    return tuple(sorted({check_integer(f"{name}[{i}]", token, 0, MOST_IDS) for i, token in enumerate(ids)}))


def biases(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of id and bias, sorted by id, each id once. Ids from JSON are strings of decimal digits."""
    try:
        given: dict[Any, Any] = dict(() if value is None else value)
    except (TypeError, ValueError):
        raise _refusal(name, value, "give a dictionary from token ids to numbers") from None
    biases: dict[int, float] = {}
    for token, bias in given.items():
        decimal = isinstance(token, str) and token.isascii() and token.isdecimal() and len(token) < 20
        key = check_integer(name, int(token) if decimal else token, 0, MOST_IDS)
        if key in biases:
            raise _refusal(name, token, "give each token once")
        biases[key] = real_number(-100.0, 100.0)(f"{name}[{key}]", bias)
    return tuple(sorted(biases.items()))


def source(name: str, value: Any) -> str:
    try:
        if isinstance(value, str) and 0 < len(value.encode()) <= MOST_SOURCE_BYTES:
            return value
    except UnicodeEncodeError:
        raise _refusal(name, value, "give text that UTF-8 can encode") from None
    raise _refusal(name, value, "give a string of 1 byte to 1 MiB")


def json_schema(name: str, value: Any) -> str:
    remedy = "give a JSON Schema, as a dictionary or its JSON text"
    try:
        text = value
        if isinstance(text, dict):
            text = json.dumps(text, ensure_ascii=False, allow_nan=False)
        parsed = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise _refusal(name, value, remedy) from None
    if not isinstance(parsed, dict):
        raise _refusal(name, value, remedy)
    return source(name, text)
