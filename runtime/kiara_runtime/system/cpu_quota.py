"""The part of the processor that a container or service may use: the CPU quota of its control groups (Linux).

A process that has more busy threads than its quota allows is stopped for the rest of each period, mostly while some of
them wait for the others: 12 requests at once, with two threads at a fifth of a core, took twice as long as with one.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def cpu_quota(own: Path = Path("/proc/self/cgroup"), root: Path = CGROUPS) -> float | None:
    """Cores that the quota allows, such as 1.5; None without a quota. The smallest one of all parents counts.

    own: lists the control groups of the process (cgroups(7)). root: where they are mounted.
    """
    found: list[float] = []
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:  # version 2
                found += [quota for folder in _parents(root, path) if (quota := _second(folder)) is not None]
            elif "cpu" in controllers.split(","):
                found += [quota for folder in _parents(root / "cpu", path) if (quota := _first(folder)) is not None]
    return min(found, default=None)


def threads_within_quota() -> int | None:
    """Threads that the quota can keep busy, at least 1; None without a quota."""
    quota = cpu_quota()
    return None if quota is None else max(1, int(quota))


def _parents(root: Path, path: str) -> list[Path]:
    """A control group's folder and those around it. In a container the path may be that of the host."""
    inner = root / path.lstrip("/")
    return [inner, *(folder for folder in inner.parents if folder.is_relative_to(root))]


def _second(folder: Path) -> float | None:
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    return None


def _first(folder: Path) -> float | None:
    with suppress(OSError, ValueError):
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return None if quota < 0 else quota / int((folder / "cpu.cfs_period_us").read_text())
    return None
