"""Memory of this process: large arrays from the system itself, freed memory back to it, one arena for all threads."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap

import numpy as np
from numpy.typing import NDArray

# A process that forks must not write into its parent's memory.
_PRIVATE: dict[str, int] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
_NO_GLIBC = (OSError, TypeError, AttributeError)
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # of glibc's mallopt(3)
_LARGE_BYTES = 256 << 10


def untouched(size: tuple[int, ...], kind: np.dtype[np.generic]) -> NDArray[np.generic]:
    """Zeros straight from the system: pages that were never written to take no memory.

    NumPy would ask for huge pages, and a head's first token would make a whole context's worth of them resident.
    Raises MemoryError.
    """
    try:
        memory = mmap.mmap(-1, math.prod(size) * kind.itemsize, **_PRIVATE)
    except (OSError, OverflowError):
        raise MemoryError(f"a cache of {math.prod(size) * kind.itemsize >> 20} MiB") from None
    return np.frombuffer(memory, dtype=kind).reshape(size)


def give_back() -> None:
    """Return freed memory to the system: glibc keeps what lies below anything in use."""
    with contextlib.suppress(*_NO_GLIBC):
        ctypes.CDLL(None).malloc_trim(0)


def share_arena() -> None:
    """Let all threads allocate from one arena, and large blocks straight from the system.

    glibc gives each thread an arena, which keeps what it was given: with some fifty threads that make steps in turn
    SmolLM2 held 90 MB more after four minutes under load, and more each minute; so it levels off.
    """
    with contextlib.suppress(*_NO_GLIBC):
        library = ctypes.CDLL(None)
        library.mallopt(_M_ARENA_MAX, 1)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
