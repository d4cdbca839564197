"""A tensor of imported weights, read only when needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class Source:
    """name, shape: as in Hugging Face files. read: returns the values, in their stored type."""

    file: Path
    name: str
    shape: list[int]
    read: Callable[[], Tensor]
