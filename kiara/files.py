"""Folders that appear whole or not at all, whatever interrupts their writing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name, and its place, when the block ends well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        folder.chmod(0o755)  # mkdtemp's own mode would shut others out of a finished folder
        yield folder
        for file in folder.rglob("*"):
            _sync(file)
        _take_place(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _take_place(folder: Path, out: Path) -> None:
    old = folder.with_name(folder.name + "-old")
    if out.exists():
        out.rename(old)
    folder.rename(out)
    _sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
