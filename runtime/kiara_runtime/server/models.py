"""The models of a server: which there are, and which are loaded. Each is loaded on first use.

A request keeps its model loaded. One that nobody uses may be unloaded: after a time without requests, or to make room
for another. A request whose model is being loaded, or has no room yet, waits.
"""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from kiara_runtime.bundle import GRAPH_FOLDER, Bundle
from kiara_runtime.errors import UserError
from kiara_runtime.server.guard import ApiError
from kiara_runtime.server.openai.responses import Model as Card
from kiara_runtime.server.served import ServedModel
from kiara_runtime.system import give_back, resident
from kiara_runtime.tokens import template_of

SHOWN = {"README.md": "text/markdown; charset=utf-8", "receipt.json": "application/json", "receipt.png": "image/png"}
TICK = 0.25  # seconds between checks of a request that waits for its model
LATEST = ":latest"  # Ollama's clients append it to names


@dataclass(frozen=True)
class Limits:
    """max_models: loaded at once. memory: bytes of this process. idle_seconds: without a request, until a model is
    unloaded. None is no limit.
    """

    max_models: int | None = None
    memory: int | None = None
    idle_seconds: float | None = None


def name_of(bundle: Bundle) -> str:
    return str(bundle.manifest.get("name") or bundle.folder.resolve().name)


@dataclass
class Entry:
    """A bundle that is served, loaded or not. users: requests that use it."""

    bundle: Bundle
    variant: str
    served: ServedModel | None = None
    loading: bool = False
    was_loaded: bool = False
    users: int = 0
    last_used: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        return name_of(self.bundle)

    @property
    def fingerprint(self) -> str:
        return f"kiara-{self.bundle.manifest['sha256'][:12]}"

    def card(self) -> Card:
        shape = self.bundle.architecture
        return Card(
            id=self.name,
            created=int((self.bundle.folder / "kiara.json").stat().st_mtime),
            context_length=shape.context_length,
            vocab_size=shape.vocab_size,
            parameters=int(self.bundle.manifest.get("parameters", 0)),
            variant=self.variant,
            chat=self.served.has_chat if self.served else self._has_template,
            loaded=self.served is not None,
        )

    @cached_property
    def weights(self) -> int:
        """Bytes of its graph."""
        names = [name for name in self.bundle.files_of(self.variant) if name.startswith(GRAPH_FOLDER)]
        return sum(int(self.bundle.manifest["files"][name]["size"]) for name in names)

    def file(self, name: str) -> bytes:
        """A file for people; raises ApiError if the bundle has none of this name."""
        names = [shown for shown in SHOWN if shown in self.bundle.manifest["files"]]
        if name not in names:
            raise ApiError(404, f"bundle: has no {name:.80}; it has {', '.join(names)}")
        self.bundle.check([name])
        return (self.bundle.folder / name).read_bytes()

    @cached_property
    def _has_template(self) -> bool:
        """Whether its tokenizer_config.json has a chat template; whether that works is known once it is loaded."""
        with suppress(OSError, ValueError):
            self.bundle.check(["tokenizer_config.json"])
            config = json.loads((self.bundle.folder / "tokenizer_config.json").read_text("utf-8"))
            return isinstance(config, dict) and template_of(cast("dict[str, Any]", config)) is not None
        return False


class Models:
    """entries: at least one. load: turns one into a model; may take long. aliases: further names of models.

    any_model: unknown names mean the first model.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        load: Callable[[Entry], ServedModel],
        limits: Limits | None = None,
        aliases: Mapping[str, str] | None = None,
        any_model: bool = False,
    ) -> None:
        self.entries, self._load, self._limits = list(entries), load, limits or Limits()
        self._aliases, self._any_model, self._changed = dict(aliases or {}), any_model, threading.Condition()
        self._turns = itertools.count()
        self._waiting: dict[int, Entry] = {}  # requests that wait for room, by their turn
        self._check()

    def find(self, name: str | None) -> Entry:
        """The entry of a name, by default the first; raises ApiError for an unknown name."""
        plain = None if name is None else name.removesuffix(LATEST)
        for wanted in (name, plain):
            for entry in self.entries:
                if wanted is None or entry.name == self._aliases.get(wanted, wanted):
                    return entry
        if self._any_model:
            return self.entries[0]
        known = ", ".join([*(entry.name for entry in self.entries), *self._aliases])
        raise ApiError(404, f"model: {name:.80} does not exist; use {known:.200}", "model", "model_not_found")

    @contextmanager
    def use(self, name: str | None, check: Callable[[], None]) -> Generator[ServedModel]:
        """Keep a model loaded, after loading it if necessary. check: raises to end the wait."""
        entry = self.find(name)
        served = self._enter(entry, check)
        try:
            yield served
        finally:
            with self._changed:
                entry.users -= 1
                entry.last_used = time.monotonic()
                self._changed.notify_all()

    def loaded(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.served is not None]

    @property
    def loading(self) -> bool:
        """Whether a model is being loaded."""
        return any(entry.loading for entry in self.entries)

    def load_first(self) -> None:
        """Load the first model, before any request; raises UserError if it cannot be."""
        entry = self.entries[0]
        with self._changed:
            entry.loading = True
        self._finish_loading(entry)

    def unload_idle(self) -> None:
        """Unload the models that have had no request for the allowed time, or while too much memory is in use."""
        with self._changed:
            for entry in self._idle():
                age, limit = time.monotonic() - entry.last_used, self._limits.idle_seconds
                if (limit is not None and age > limit) or self._room() < 0:
                    self._unload(entry)

    def close(self) -> None:
        for entry in self.loaded():
            if entry.served is not None:
                entry.served.model.close()

    def _check(self) -> None:
        names = [entry.name for entry in self.entries]
        for name in names:
            if names.count(name) > 1:
                raise UserError("bundle", "is the name of two of them", "export one to another folder", value=name)
        for alias, name in self._aliases.items():
            if name not in names:
                raise UserError(f"--alias {alias}={name}", "names no model", f"use one of {', '.join(names)}")
            if alias in names:
                raise UserError(f"--alias {alias}={name}", f"{alias} is a model itself", "give another name")
        for entry in self.entries:
            if self._limits.memory is not None and entry.weights > self._limits.memory:
                problem = f"is too little for {entry.name}, whose weights take {entry.weights / 1e6:.1f} MB"
                raise UserError("--memory", problem, "allow more", value=self._limits.memory)

    def _enter(self, entry: Entry, check: Callable[[], None]) -> ServedModel:
        with self._changed:
            turn = next(self._turns)
            try:
                while not self._may_enter(entry, turn):
                    self._changed.wait(TICK)
                    check()
            finally:
                self._waiting.pop(turn, None)
            entry.users += 1
            if entry.served is not None:
                return entry.served
            entry.loading = True
        try:
            return self._finish_loading(entry)
        except BaseException as error:
            with self._changed:
                entry.users -= 1
            if isinstance(error, (UserError, MemoryError)):
                said = f"model: {entry.name} cannot be loaded; {error or 'out of memory'}"
                raise ApiError(500, said, "model", "model_not_loaded") from error
            raise

    def _finish_loading(self, entry: Entry) -> ServedModel:
        try:
            served = self._load(entry)
            with self._changed:
                entry.served, entry.was_loaded = served, True
            return served
        finally:
            with self._changed:
                entry.loading = False
                self._changed.notify_all()

    def _may_enter(self, entry: Entry, turn: int) -> bool:
        """Whether a request may use its model, or load it, now. Earlier ones that wait for room go first: otherwise a
        model that is always in use would never make room.
        """
        if entry.loading:
            return False
        if any(earlier < turn and other is not entry for earlier, other in self._waiting.items()):
            return False
        if entry.served is not None or self._makes_room(entry):
            return True
        self._waiting[turn] = entry
        return False

    def _makes_room(self, entry: Entry) -> bool:
        """Unload what must go for this model, the least recently used first; whether there is room now."""
        while not self._fits(entry):
            idle = self._idle()
            if not idle:
                return not any(other.users or other.loading for other in self.entries)  # nothing else can be freed
            self._unload(idle[0])
        return True

    def _idle(self) -> list[Entry]:
        """Loaded models that no request uses, the least recently used first."""
        return sorted((entry for entry in self.loaded() if not entry.users), key=lambda entry: entry.last_used)

    def _fits(self, entry: Entry) -> bool:
        there = [other for other in self.entries if other.served is not None or other.loading]
        few = self._limits.max_models is None or len(there) < self._limits.max_models
        return few and self._room() >= entry.weights

    def _room(self) -> float:
        """Bytes that are left, after the models that are being loaded."""
        if self._limits.memory is None:
            return math.inf
        loading = sum(entry.weights for entry in self.entries if entry.loading)
        used = resident()
        if used is None:  # the weights alone, where the system does not tell
            used = sum(entry.weights for entry in self.loaded())
        return self._limits.memory - used - loading

    def _unload(self, entry: Entry) -> None:
        assert entry.served is not None
        entry.served.model.close()
        entry.served = None
        give_back()


def figures(entries: Sequence[Entry]) -> tuple[int, int]:
    """Running and waiting sequences of all loaded models."""
    loads = [served.model.runner.load() for entry in entries if (served := entry.served) is not None]
    return sum(load[0] for load in loads), sum(load[1] for load in loads)
