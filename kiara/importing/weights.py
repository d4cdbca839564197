"""A tensor of imported weights, read only when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PIECE = 1 << 23  # values that are read at once


@dataclass(frozen=True)
class Source:
    """name, shape: as in Hugging Face files. pieces: the values, in their stored type, by rows from the first on."""

    file: Path
    name: str
    shape: list[int]
    pieces: Callable[[], Iterable[Tensor]]

    def read(self) -> Tensor:
        """All values."""
        pieces = list(self.pieces())
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def row_ranges(shape: list[int]) -> list[tuple[int, int]]:
    """The first row of each piece and that after its last."""
    rows = max(1, PIECE // max(1, torch.Size(shape[1:]).numel())) if shape else 1
    total = shape[0] if shape else 1
    return [(start, min(start + rows, total)) for start in range(0, total, rows)] or [(0, 0)]


def unpaired(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """The rows of each query or key head as halves, (2, half), from pairs that are rotated together, (half, 2)."""
    halves = values.reshape(heads, len(values) // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
