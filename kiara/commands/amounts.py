"""Parse percentages of options, such as 0.5%. Sizes are in `kiara_runtime.commands.amounts`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import click


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
