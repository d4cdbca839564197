"""Folders that appear whole or not at all, whatever interrupts their writing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kiara_runtime.errors import UserError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name, and its place, when the block ends well."""
    out = out.resolve()  # a link stays, and what it points to is replaced
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); name another place") from None
    try:
        folder.chmod(0o755)  # mkdtemp's own mode would shut others out of a finished folder
        yield folder
        for path in (*folder.rglob("*"), folder):
            _sync(path)
        _take_place(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file whole: a reader sees the old text or the new, never a part."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, "utf-8")
    _sync(new)
    new.replace(path)


def kind_of(folder: Path) -> str | None:
    """What Kiara wrote into `folder`: a prepared folder, bundle, checkpoint or run; None where it wrote nothing."""
    marks = {
        "prepared folder": ("dataset.json",),
        "bundle": ("kiara.json",),
        "checkpoint": ("model.safetensors", "config.json"),
        "run": ("config.yaml", "metrics.jsonl"),
    }
    return next((kind for kind, names in marks.items() if all((folder / name).is_file() for name in names)), None)


def _take_place(folder: Path, out: Path) -> None:
    old = folder.with_name(folder.name + "-old")
    if out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise
    _sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
