"""What one pass computes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.engine.sequence import Sequence


@dataclass(frozen=True)
class Batch:
    """One pass over consecutive slots, starting at `first`. ids: (B, S). lengths: of each sequence after the pass.

    every: whether logits are needed after each token, not only after the last.
    """

    first: int
    sequences: list[Sequence]
    ids: NDArray[np.int64]
    lengths: list[int]
    every: bool = False
