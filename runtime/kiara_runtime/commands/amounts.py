"""Parse sizes of options, such as 40MB."""

from __future__ import annotations

import re

import click


def size_of(option: str, value: str | None) -> int | None:
    """Bytes of a size such as 40MB. Units are decimal: 1MB is 1,000,000 bytes."""
    if value is None:
        return None
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kMG]?)B\s*", value)
    if not found or not 0 < float(found[1]) < 1e9:
        raise click.UsageError(f"{option}: {value!r} is not a size; use a form such as 40MB")
    return round(float(found[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[found[2]])
