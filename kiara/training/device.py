"""Choose device, precision and compilation for training; report when memory runs out."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from kiara_runtime.errors import UserError
from kiara_runtime.system import give_back

# Runs of at least so many FLOPs for each layer repay the compile time: with 6 layers about 20 s on two cores, with 30
# layers and adapters 270 s, for steps that are a sixth faster.
COMPILE_FLOPS = {"cpu": 3.4e12, "cuda": 1.7e15}


def pick_device(wanted: str) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device", "no CUDA device is available", "use auto or cpu")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def use_bfloat16(dtype: str, device: str) -> bool:
    if dtype != "auto":
        return dtype == "bfloat16"
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def use_compile(setting: str, device: str, flops: float, layers: int) -> bool:
    """Whether to compile; decided by the run's FLOPs, not by timing, so that a run can be repeated bit for bit."""
    if setting != "auto":
        return setting == "always"
    return flops >= COMPILE_FLOPS[device] * layers and _has_compiler()


def check_device(device: str, compiling: str) -> None:
    """Raise UserError if this machine cannot provide training.device and training.compile."""
    pick_device(device)
    if compiling == "always" and not _has_compiler():
        raise UserError(
            "training.compile", "always needs a C++ compiler (c++, g++ or clang++)", "install one, or set auto"
        )


def _has_compiler() -> bool:
    return any(map(shutil.which, ("c++", "g++", "clang++")))


@contextmanager
def memory_told(field: str, remedy: str) -> Iterator[None]:
    """Raise UserError, naming the setting to lower, if memory runs out in the block."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _ran_out(error):
            raise
        raise UserError(field, "is too large for the memory of this machine", remedy) from None


def _ran_out(error: Exception) -> bool:
    """Whether memory ran out. PyTorch has an exception class for GPUs; on CPUs only the allocator's name tells."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


@contextmanager
def repeatable(device: str) -> Iterator[None]:
    """Make PyTorch deterministic on a CPU, so that the same seed gives the same losses bit for bit.

    Otherwise the order in which compiled code sums the embedding's gradients depends on thread timing. On a GPU some
    kernels have no deterministic form, and nothing is guaranteed.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(device == "cpu" or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def memory_mib(device: str) -> int:
    """Peak memory on a GPU, or the resident memory of the process on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    except (OSError, ValueError, IndexError):  # a system without it
        return 0


def give_back_memory() -> None:
    """Return freed memory to the system; graphs hold reference cycles, so collect them first."""
    gc.collect()
    give_back()
