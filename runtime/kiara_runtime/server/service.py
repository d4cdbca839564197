"""What all requests share: the settings, the models, who is admitted, the log and the metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import BoundedSemaphore
from typing import Literal

from kiara_runtime.bundle import Bundle
from kiara_runtime.model import Model
from kiara_runtime.server.guard import Guard
from kiara_runtime.server.jobs import Admission
from kiara_runtime.server.models import Entry, Limits, Models, figures
from kiara_runtime.server.records import Log, Metrics, Record
from kiara_runtime.server.responses.store import Store
from kiara_runtime.server.served import ServedModel
from kiara_runtime.system import log_level

BESIDE = 6  # requests that may tokenise at once, on threads not used by generation
READING = 2  # bodies validated at once: one with thousands of errors takes a hundred MiB


@dataclass
class Settings:
    """slots: sequences of a model that run at once. queue: requests that may wait, besides as many running ones as
    slots. timeout: seconds per request. drain: seconds for running requests at shutdown. drain_delay: seconds before
    that, in which requests are still accepted and /ready says that the server stops. max_body: bytes. any_model:
    answer whatever model a request names. aliases: further names of models. limits: on loaded models. root_path: prefix
    of all paths, as a proxy sees them. trusted_proxy: address of a proxy whose X-Forwarded headers count, or *.
    otlp_endpoint: where traces are sent.
    """

    slots: int = 8
    queue: int = 32
    timeout: float = 600.0
    drain: float = 30.0
    drain_delay: float = 0.0
    max_body: int = 2 << 20
    log_prompts: bool = False
    any_model: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    limits: Limits = field(default_factory=Limits)
    root_path: str = ""
    trusted_proxy: str | None = None
    otlp_endpoint: str | None = None
    guard: Guard = field(default_factory=Guard)


class Service:
    def __init__(
        self, bundles: Sequence[Bundle], variant: str | None, settings: Settings, load: Callable[[Bundle], Model]
    ) -> None:
        """variant: of every bundle, by default each one's first. Raises UserError where a setting fits no model."""
        self.settings, self.guard, self.log = settings, settings.guard, Log(settings.log_prompts, log_level())
        self.reading = BoundedSemaphore(READING)
        self.admission, self.beside = Admission(settings.slots + settings.queue), Admission(BESIDE)
        self.store = Store()
        self.draining = False
        self.trace: Callable[[Record, float], None] | None = None  # gets each request that has ended, and its seconds
        self._load = load
        entries = [Entry(bundle, variant or bundle.variants[0]) for bundle in bundles]
        self.metrics = Metrics(lambda: figures(entries), lambda: len(self.models.loaded()))
        self.models = Models(entries, self._loaded, settings.limits, settings.aliases, settings.any_model)

    @property
    def status(self) -> Literal["ok", "loading", "draining"]:
        """Of several models none needs to be loaded yet."""
        if self.draining:
            return "draining"
        return "ok" if len(self.models.entries) > 1 or self.models.entries[0].was_loaded else "loading"

    def stop(self) -> None:
        """Stop accepting requests; running ones continue."""
        self.draining = True
        self.admission.close()

    def _loaded(self, entry: Entry) -> ServedModel:
        model = self._load(entry.bundle)
        return ServedModel(entry.name, entry.fingerprint, model, self.settings.slots, self.metrics, self.store)
