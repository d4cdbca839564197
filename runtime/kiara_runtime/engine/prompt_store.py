"""Keys and values of prompts on disk, so that a repeated long prompt is not computed again.

One file per prompt, in a folder for the model: a line of JSON (the tokens, and a hash of them and the rest), then the
bytes of the cache. A file is used only if its size fits the model and its SHA-256 matches; otherwise the prompt is
computed. Files hold the prompt's tokens unencrypted, so only the user may read them.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.engine.slots import Stored, common_prefix
from kiara_runtime.system import FolderLock, LockedError

LEAST_TOKENS = 32  # shorter prompts are computed as fast as they are read
MAX_BYTES = 1 << 30  # of all files of a model; the least recently used are deleted first
MOST_WAITING = 4  # prompts waiting to be written, each held in memory
MAX_FILES = 256  # every lookup reads all their headers
MAX_HEADER_BYTES = 4 << 20
SUFFIX, UNFINISHED = ".kv", ".partial"


class PromptStore:
    """The stored prompts of one model, on one kind of machine."""

    def __init__(self, folder: Path, identity: str, max_bytes: int = MAX_BYTES) -> None:
        """identity: names everything that determines the bits in the cache: graph, ONNX Runtime, processor."""
        self._folder = folder / hashlib.sha256(identity.encode()).hexdigest()[:32]
        self._max_bytes = max_bytes

    def save(self, tokens: Sequence[int], content: NDArray[Any]) -> bool:
        """Store the keys and values (2 L, K, N, E) of N tokens; return whether a file has them now."""
        if len(tokens) < LEAST_TOKENS:
            return False
        if self.covers(tokens, self._prompts().values()):
            return True
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FolderLock(self._folder):
                self._clear_unfinished()
                self._write(list(tokens), np.ascontiguousarray(content).data.cast("B"))
                self._make_room()
            return True
        except LockedError:  # perhaps another process is storing the same prompts; the next request tries again
            return False
        except OSError as error:  # no reason to fail the request: only the next start is slower
            warnings.warn(f"prompt cache: {self._folder}: {error.strerror}; the prompt was not stored", stacklevel=2)
            return False

    def find(self, prompt: Sequence[int], known: int, buffers: NDArray[Any]) -> Stored | None:
        """Return the longest stored prefix of a prompt, if it is longer than `known` tokens.

        buffers: (2 L, K, C, E), whose shape and type the keys and values must match.
        """
        if len(prompt) < max(LEAST_TOKENS, known + 1):
            return None
        shared = {path: common_prefix(tokens, list(prompt)) for path, tokens in self._prompts().items()}
        for path in sorted(shared, key=lambda path: -shared[path]):
            if shared[path] < max(LEAST_TOKENS, known + 1):
                break
            content = self._read(path, buffers)
            if content is not None:
                return Stored(shared[path], content)
        return None

    @staticmethod
    def covers(tokens: Sequence[int], others: Iterable[list[int]]) -> bool:
        """Whether one of `others` starts with `tokens`."""
        return any(common_prefix(list(tokens), known) == len(tokens) for known in others)

    def _prompts(self) -> dict[Path, list[int]]:
        found: dict[Path, list[int]] = {}
        for path in self._folder.glob(f"*{SUFFIX}") if self._folder.is_dir() else ():
            header = _header(path)
            if header is not None:
                found[path] = header["tokens"]
        return found

    def _read(self, path: Path, buffers: NDArray[Any]) -> NDArray[Any] | None:
        """Keys and values in a file, (2 L, K, N, E); None if they do not match its header or the model."""
        header = _header(path)
        if header is None or len(header["tokens"]) > buffers.shape[2]:
            return None
        shape = (*buffers.shape[:2], len(header["tokens"]), buffers.shape[3])
        size = int(np.prod(shape)) * buffers.itemsize
        try:
            with path.open("rb") as file:
                file.readline(MAX_HEADER_BYTES)
                content = file.read(size + 1)
            if len(content) != size or _digest(header["tokens"], content) != header["sha256"]:
                path.unlink()  # so that it is written again
                return None
        except OSError:
            return None
        with suppress(OSError):  # a read-only folder
            os.utime(path)
        return np.frombuffer(content, dtype=buffers.dtype).reshape(shape)

    def _write(self, tokens: list[int], content: memoryview) -> None:
        name = _digest(tokens, b"")[:32]
        header = {"tokens": tokens, "sha256": _digest(tokens, content)}
        handle, temporary = tempfile.mkstemp(UNFINISHED, dir=self._folder)  # readable only by its owner
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(json.dumps(header).encode() + b"\n")
                file.write(content)
            Path(temporary).replace(self._folder / f"{name}{SUFFIX}")
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _clear_unfinished(self) -> None:
        """Delete the temporary files of processes that were killed while writing."""
        for path in self._folder.glob(f"*{UNFINISHED}"):
            path.unlink(missing_ok=True)

    def _make_room(self) -> None:
        files = sorted(self._folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        total = 0
        for count, path in enumerate(files):
            total += path.stat().st_size
            if total > self._max_bytes or count >= MAX_FILES:
                path.unlink(missing_ok=True)


class PromptWriter:
    """Saves prompts in a separate thread, so that no step waits for the disk. At exit, pending writes finish."""

    def __init__(self, store: PromptStore) -> None:
        self._store, self._saved = store, deque[list[int]](maxlen=MAX_FILES)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kiara-prompts")
        self._room = threading.BoundedSemaphore(MOST_WAITING)

    def offer(self, tokens: list[int], buffers: NDArray[Any]) -> None:
        """Queue a copy of the first len(tokens) positions of buffers (2 L, K, C, E), if it is new and there is room.

        Never raises: a prompt that is not saved only makes the next start slower.
        """
        with suppress(Exception):
            if len(tokens) < LEAST_TOKENS or self._store.covers(tokens, list(self._saved)):
                return
            if self._room.acquire(blocking=False):
                self._submit(tokens, buffers)

    def close(self) -> None:
        """Wait until everything is saved."""
        self._thread.shutdown(wait=True)

    def _submit(self, tokens: list[int], buffers: NDArray[Any]) -> None:
        try:
            content = np.ascontiguousarray(buffers[:, :, : len(tokens)])
            self._thread.submit(self._save, tokens, content)
        except BaseException:  # out of memory, or the interpreter exits
            self._room.release()
            raise

    def _save(self, tokens: list[int], content: NDArray[Any]) -> None:
        try:
            with suppress(Exception):
                if self._store.save(tokens, content):
                    self._saved.append(tokens)
        finally:
            self._room.release()


def _digest(tokens: list[int], content: bytes | memoryview) -> str:
    digest = hashlib.sha256(json.dumps(tokens).encode())
    digest.update(content)
    return digest.hexdigest()


def _header(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            header: Any = json.loads(file.readline(MAX_HEADER_BYTES))
        tokens = [index(token) for token in header["tokens"]]
        return {"tokens": tokens, "sha256": str(header["sha256"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
