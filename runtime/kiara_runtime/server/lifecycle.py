"""Starting and stopping the server: address, signals, draining, and messages to the terminal."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from waitress.server import TcpWSGIServer

from kiara_runtime.bundle import MANIFEST, Bundle
from kiara_runtime.errors import UserError
from kiara_runtime.model import Model
from kiara_runtime.sampling import check_integer
from kiara_runtime.server.address import Address
from kiara_runtime.server.http import connections
from kiara_runtime.server.models import name_of
from kiara_runtime.server.service import Service, Settings
from kiara_runtime.system import share_arena

if TYPE_CHECKING:
    from kiara_runtime.server.traces import Traces

FLUSH_SECONDS = 2.0


def serve(
    paths: Sequence[Path],
    address: Address,
    settings: Settings,
    variant: str | None,
    int8_cache: bool,
    load: Callable[[Bundle], Model],
    say: Callable[[str], None],
) -> None:
    """Serve bundles, or all bundles in folders, until a signal. The server answers while a model is still loading.

    A single model is loaded at once, several when they are asked for. int8_cache: whether `load` wants one. say: prints
    a message. Raises UserError if a bundle, the address or a setting is invalid.
    """
    check_integer("slots", settings.slots, 1, 1024)
    check_integer("queue", settings.queue, 0, 4096)
    bundles = [Bundle.open(folder) for path in paths for folder in _bundles(path)]
    for bundle in bundles:
        bundle.variant_file(variant, int8_cache)
    share_arena()

    def timed(bundle: Bundle) -> Model:
        started = time.perf_counter()
        model = load(bundle)
        say(f"{name_of(bundle)} is loaded ({time.perf_counter() - started:.2f} s)")
        return model

    service = Service(bundles, variant, settings, timed)
    traces = None if settings.otlp_endpoint is None else _traces(settings.otlp_endpoint)
    if traces is not None:
        service.trace = traces.write
    listener = address.listen()
    server = connections(service, listener)
    stop = _Stop()
    failed: list[Exception] = []
    names = [entry.name for entry in service.models.entries]

    def begin() -> None:
        try:
            service.models.load_first()
        except Exception as error:
            failed.append(error)
            stop.set()

    threading.Thread(target=server.run, daemon=True, name="connections").start()
    say(f"Serving {', '.join(names)} on {address.shown(listener)}")
    _warn(address, settings, say)
    if len(names) == 1:
        threading.Thread(target=begin, daemon=True, name="loading").start()
    stop.wait(service.models.unload_idle)
    if not failed:
        _drain(service, say)
    _flush(server)
    address.remove()
    if traces is not None:
        traces.close()
    if service.models.loading:
        os._exit(0)  # ONNX Runtime would abort the process in a normal exit
    service.models.close()
    if failed:
        raise failed[0]


def _bundles(path: Path) -> list[Path]:
    """The bundles that a path stands for: itself, or those in its folder."""
    if (path / MANIFEST).exists() or not path.is_dir():
        return [path]
    found = sorted(folder.parent for folder in path.glob(f"*/{MANIFEST}"))
    if not found:
        raise UserError(path, f"has no {MANIFEST}, and no folder in it has one", "name a bundle or a folder of bundles")
    return found


class _Stop:
    """Set by SIGTERM or SIGINT; a second signal ends the process at once."""

    def __init__(self) -> None:
        self._set = False  # not an Event: the thread that a signal interrupts may hold its lock
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)

    def set(self) -> None:
        self._set = True

    def wait(self, between: Callable[[], None]) -> None:
        """Return once it is set. between: called regularly until then."""
        while not self._set:
            time.sleep(0.1)
            between()

    def _signalled(self, number: int, frame: object) -> None:
        if self._set:
            os._exit(128 + number)
        self._set = True


def _drain(service: Service, say: Callable[[str], None]) -> None:
    service.draining = True
    if service.settings.drain_delay:
        say(f"Not ready any more; requests are accepted for {service.settings.drain_delay:g} s.")
        time.sleep(service.settings.drain_delay)
    service.stop()
    seconds = service.settings.drain
    say(f"Stopping; running requests get {seconds:g} s. The same signal again stops at once.")
    if not service.admission.wait_until_empty(seconds):
        say("Stopping with requests unfinished.")
        service.models.close()
        service.admission.wait_until_empty(FLUSH_SECONDS)


def _flush(server: TcpWSGIServer) -> None:
    """Wait until responses have been sent."""
    end = time.monotonic() + FLUSH_SECONDS
    channels = server.active_channels
    while time.monotonic() < end and any(c.requests or c.total_outbufs_len for c in list(channels.values())):
        time.sleep(0.02)
    server.task_dispatcher.shutdown(timeout=1)


def _traces(endpoint: str) -> Traces:
    try:
        from kiara_runtime.server.traces import Traces
    except ModuleNotFoundError as error:
        remedy = "pip install 'kiara-runtime[otel]'"
        raise UserError("--otlp-endpoint", f"needs the package {error.name}", remedy) from None
    if not re.fullmatch(r"https?://\S+", endpoint):
        raise UserError("--otlp-endpoint", "is no address", "give one such as http://127.0.0.1:4318", value=endpoint)
    return Traces(endpoint)


def _warn(address: Address, settings: Settings, say: Callable[[str], None]) -> None:
    if address.is_local:
        return
    keys = "" if settings.guard.keys else ", and without a key (--api-key-file) anyone there may use the model"
    say(f"Warning: {address.host} can be reached from other machines, unencrypted{keys}.")
