"""The CPU quota of control groups of both versions, as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiara_runtime.system import cpu_quota as module
from kiara_runtime.system.cpu_quota import cpu_quota, threads_within_quota

QUOTA, PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"  # of version 1


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root / "groups"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n", "a/b/cpu.max": "max 100000\n"}, 0.5),
        ("0::/of/the/host\n", {"cpu.max": "200000 100000\n"}, 2.0),  # in a container its own group is the root
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("4:memory:/m\n3:cpu,cpuacct:/c\n", {f"cpu/c/{QUOTA}": "20000\n", f"cpu/c/{PERIOD}": "100000\n"}, 0.2),
        ("3:cpu:/c\n", {f"cpu/c/{QUOTA}": "-1\n", f"cpu/c/{PERIOD}": "100000\n"}, None),
        ("0::/\n", {"cpu.max": "nonsense\n"}, None),
    ],
)  # fmt: skip
def test_the_smallest_quota_counts(tmp_path: Path, own: str, files: dict[str, str], expected: float | None) -> None:
    (tmp_path / "own").write_text(own)
    assert cpu_quota(tmp_path / "own", _write(tmp_path, files)) == expected


@pytest.mark.parametrize(("quota", "expected"), [(None, None), (0.2, 1), (1.5, 1), (4.0, 4)])
def test_threads_that_a_quota_keeps_busy(monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int) -> None:
    monkeypatch.setattr(module, "cpu_quota", lambda: quota)
    assert threads_within_quota() == expected


def test_a_system_without_control_groups_has_none(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none", tmp_path) is None
