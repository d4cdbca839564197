"""A lock on a folder that records which process holds it, and ends with that process.

It is a lock of the operating system on a hidden file beside the folder, `.NAME.lock`. A killed process leaves a small
file that locks nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from kiara_runtime.errors import UserError

if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


_OWNER = 16  # offset of the owner's line: on Windows the locked byte cannot be read


class LockedError(UserError):
    """Another process is writing this folder."""


class FolderLock:
    """A lock held from construction to `close`; raises LockedError if another process, or this one, holds it."""

    def __init__(self, folder: Path) -> None:
        folder = folder.resolve()
        self.path = folder.with_name(f".{folder.name}.lock")
        self._descriptor: int | None = None
        while self._descriptor is None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _take(descriptor)
            except (BlockingIOError, PermissionError):
                owner = _owner(descriptor)
                os.close(descriptor)
                raise LockedError(
                    folder, f"{owner} is writing it", "wait until it has finished, or name another folder"
                ) from None
            except OSError:  # the file system has no locks, so nobody can hold one
                pass
            if _still_there(self.path, descriptor):
                self._descriptor = descriptor
            else:  # its last holder has just deleted it
                os.close(descriptor)
        self._record_owner()

    def close(self) -> None:
        """Release the lock; a second call does nothing."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        if sys.platform != "win32":  # Windows cannot delete an open file
            self.path.unlink(missing_ok=True)
        os.close(descriptor)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self.close()

    def _record_owner(self) -> None:
        assert self._descriptor is not None
        command = " ".join([Path(arg).name for arg in getattr(sys, "argv", [])[:2]])[:100]
        owner = {"pid": os.getpid(), "command": command, "since": time.strftime("%H:%M on %Y-%m-%d")}
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, _OWNER, os.SEEK_SET)
        os.write(self._descriptor, json.dumps(owner).encode())


def _still_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _owner(descriptor: int) -> str:
    try:
        os.lseek(descriptor, _OWNER, os.SEEK_SET)
        owner: Any = json.loads(os.read(descriptor, 1000))
        return f"process {int(owner['pid'])} ({owner['command']}, since {owner['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # not recorded yet
        return "another process"
