"""What differs between processors and is not ours to change."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest


def _saturates() -> bool:
    """Whether ONNX Runtime's products of 8-bit integers saturate: x86 without VNNI (its quantization guide says so)."""
    info = Path("/proc/cpuinfo")
    words = set(info.read_text("utf-8").split()) if info.is_file() else set[str]()
    return platform.machine() in ("x86_64", "AMD64") and not words & {"avx_vnni", "avx512_vnni"}


# int8-dynamic loses more on such a processor; the export measures it and makes it finer or leaves it out.
exact_products = pytest.mark.xfail(_saturates(), reason="8-bit products saturate on this processor", strict=False)
