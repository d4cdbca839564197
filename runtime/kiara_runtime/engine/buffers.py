"""Arrays of zeros for the KV cache, straight from the operating system: untouched pages take no memory."""

from __future__ import annotations

import math
import mmap

import numpy as np
from numpy.typing import NDArray

# A process that forks must not write into its parent's memory.
_PRIVATE: dict[str, int] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def zeros(size: tuple[int, ...], kind: np.dtype[np.generic]) -> NDArray[np.generic]:
    """Allocate zeros whose pages take no memory until they are written to.

    NumPy would ask for huge pages, and a head's first token would make a whole context's worth of them resident.
    Raises MemoryError.
    """
    try:
        memory = mmap.mmap(-1, math.prod(size) * kind.itemsize, **_PRIVATE)
    except (OSError, OverflowError):
        raise MemoryError(f"a cache of {math.prod(size) * kind.itemsize >> 20} MiB") from None
    return np.frombuffer(memory, dtype=kind).reshape(size)
