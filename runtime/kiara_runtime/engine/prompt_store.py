"""Keys and values of prompts on disk, so that a long prompt that comes again is not computed again.

One file a prompt, below a folder for the model: a line of JSON (the tokens, the hash of them and the rest), then the
cache's bytes. A file is used only if its sizes fit the model and its SHA-256 is right; else the prompt is
computed again. Files hold the prompt's tokens in the clear: only the user may read them.
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
MAX_BYTES = 1 << 30  # of all files of a model; the ones unused for longest go first
MOST_WAITING = 4  # prompts that wait to be written, each of which is held in memory
MAX_FILES = 256  # whose beginnings are read for every prompt
MAX_HEADER_BYTES = 4 << 20
SUFFIX, UNFINISHED = ".kv", ".partial"


class PromptStore:
    """The stored prompts of one model, on one kind of machine."""

    def __init__(self, folder: Path, identity: str, max_bytes: int = MAX_BYTES) -> None:
        """identity: of everything that decides the cache's bits: graph, ONNX Runtime, processor."""
        self._folder = folder / hashlib.sha256(identity.encode()).hexdigest()[:32]
        self._max_bytes = max_bytes

    def save(self, tokens: Sequence[int], content: NDArray[Any]) -> bool:
        """Keep the keys and values (2 L, K, N, E) of N tokens; whether a file has them now, or had them already."""
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
        except LockedError:  # by another process on the same prompts, perhaps; it is stored when it comes again
            return False
        except OSError as error:  # the text is there; only the next start will be slower
            warnings.warn(f"prompt cache: {self._folder}: {error.strerror}; the prompt was not stored", stacklevel=2)
            return False

    def find(self, prompt: Sequence[int], known: int, buffers: NDArray[Any]) -> Stored | None:
        """The longest stored beginning of a prompt that is longer than the `known` tokens.

        buffers: (2 L, K, C, E), of whose shape and type the keys and values must be.
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
        """Whether one of the others begins with the tokens."""
        return any(common_prefix(list(tokens), known) == len(tokens) for known in others)

    def _prompts(self) -> dict[Path, list[int]]:
        found: dict[Path, list[int]] = {}
        for path in self._folder.glob(f"*{SUFFIX}") if self._folder.is_dir() else ():
            header = _header(path)
            if header is not None:
                found[path] = header["tokens"]
        return found

    def _read(self, path: Path, buffers: NDArray[Any]) -> NDArray[Any] | None:
        """The cache of a file, (2 L, K, N, E); None where it is not what its header and the model say."""
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
                path.unlink()  # so that it is written anew
                return None
        except OSError:
            return None
        with suppress(OSError):  # a folder that may only be read
            os.utime(path)
        return np.frombuffer(content, dtype=buffers.dtype).reshape(shape)

    def _write(self, tokens: list[int], content: memoryview) -> None:
        name = _digest(tokens, b"")[:32]
        header = {"tokens": tokens, "sha256": _digest(tokens, content)}
        handle, temporary = tempfile.mkstemp(UNFINISHED, dir=self._folder)  # readable by its owner alone
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(json.dumps(header).encode() + b"\n")
                file.write(content)
            Path(temporary).replace(self._folder / f"{name}{SUFFIX}")
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _clear_unfinished(self) -> None:
        """What processes left that were killed while they wrote."""
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
    """Saves prompts in a thread of its own, so that no step waits for the disk. An exit waits for what is under way."""

    def __init__(self, store: PromptStore) -> None:
        self._store, self._saved = store, deque[list[int]](maxlen=MAX_FILES)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kiara-prompts")
        self._room = threading.BoundedSemaphore(MOST_WAITING)

    def offer(self, tokens: list[int], buffers: NDArray[Any]) -> None:
        """Save the first len(tokens) positions of buffers (2 L, K, C, E), copied now, if there is room and need.

        Never fails: the text matters, not what the next start would have saved.
        """
        with suppress(Exception):
            if len(tokens) < LEAST_TOKENS or self._store.covers(tokens, list(self._saved)):
                return
            if self._room.acquire(blocking=False):
                self._submit(tokens, buffers)

    def close(self) -> None:
        """Return once everything is saved."""
        self._thread.shutdown(wait=True)

    def _submit(self, tokens: list[int], buffers: NDArray[Any]) -> None:
        try:
            content = np.ascontiguousarray(buffers[:, :, : len(tokens)])
            self._thread.submit(self._save, tokens, content)
        except BaseException:  # too little memory, or an exit
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
