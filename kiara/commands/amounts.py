"""Parse sizes and percentages of options, such as 40MB and 0.5%."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import click


def size_of(option: str, value: str | None) -> int | None:
    """Bytes of a size such as 40MB. Units are decimal: 1MB is 1,000,000 bytes."""
    if value is None:
        return None
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kMG]?)B\s*", value)
    if not found or not 0 < float(found[1]) < 1e9:
        raise click.UsageError(f"{option}: {value!r} is not a size; use a form such as 40MB")
    return round(float(found[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[found[2]])


def losses_of(option: str, values: Iterable[str]) -> float | Mapping[str, float]:
    """Relative losses: one fraction for all variants, from `0.5%`, or fractions by variant, from `int4=2%`."""
    named: dict[str, float] = {}
    for value in values:
        name, equals, percentage = value.rpartition("=")
        part = _percent(option, percentage)
        if not equals:
            if named:
                raise click.UsageError(
                    f"{option}: {value!r} is one of several but names no variant; write int4={value}"
                )
            named[""] = part
        elif "" in named:
            raise click.UsageError(
                f"{option}: {value!r} is given with a percentage for all variants; name a variant in each"
            )
        else:
            named[name.strip()] = part
    return named.get("", named)


def _percent(option: str, value: str) -> float:
    """Fraction from a percentage such as 0.5%."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*%\s*", value)
    if not found:
        raise click.UsageError(f"{option}: {value!r} is not a percentage; use a form such as 0.5%")
    return float(found[1]) / 100
