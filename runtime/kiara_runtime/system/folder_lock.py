"""A lock on a folder that names the process which holds it, and dies with that process.

The lock is the operating system's, on a hidden file beside the folder: `.NAME.lock`. What is left of a killed process
is a small file that locks nothing.
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


_OWNER = 16  # where the owner's line begins: Windows lets nobody read the byte that is locked


class LockedError(UserError):
    """Another process writes this folder."""


class FolderLock:
    """Held from when it is made until `close`; raises LockedError where another process, or this one, holds it."""

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
                    folder, f"{owner} is writing it", "wait until that has ended, or name another folder"
                ) from None
            except OSError:  # a file system without locks, on which nobody can hold one
                pass
            if _still_there(self.path, descriptor):
                self._descriptor = descriptor
            else:  # its last holder has just deleted it
                os.close(descriptor)
        self._sign()

    def close(self) -> None:
        """Give the lock back; a second time does nothing."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        if sys.platform != "win32":  # which deletes no open file
            self.path.unlink(missing_ok=True)
        os.close(descriptor)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self.close()

    def _sign(self) -> None:
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
    except (OSError, ValueError, KeyError, TypeError):  # it has not signed yet
        return "another process"
