"""A tensor of imported weights, read only when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class Source:
    """name and shape as Hugging Face has them; read: the values, in any floating-point type."""

    file: Path
    name: str
    shape: list[int]
    read: Callable[[], Tensor]
