"""Starting and stopping the server: address, signals, draining, and messages to the terminal."""

from __future__ import annotations

import errno
import ipaddress
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from waitress.server import TcpWSGIServer

from kiara_runtime.bundle import Bundle
from kiara_runtime.errors import UserError
from kiara_runtime.model import Model
from kiara_runtime.sampling import check_integer
from kiara_runtime.server.http import connections
from kiara_runtime.server.service import Service, Settings
from kiara_runtime.system import share_arena

FLUSH_SECONDS = 2.0


def serve(
    path: Path,
    host: str,
    port: int,
    settings: Settings,
    variant: str | None,
    load: Callable[[Bundle], Model],
    say: Callable[[str], None],
) -> None:
    """Serve a bundle until a signal. The server answers while the model is still loading.

    say: prints a message. Raises UserError if the bundle, the address or a setting is invalid.
    """
    check_integer("slots", settings.slots, 1, 1024)
    check_integer("queue", settings.queue, 0, 4096)
    bundle = Bundle.open(path)
    bundle.variant_file(variant)
    share_arena()
    listener = _listen(host, port)
    service = Service(bundle, variant, settings)
    server = connections(service, listener)
    address = _address(*listener.getsockname()[:2])
    stop = _Stop()
    failed: list[Exception] = []

    def begin() -> None:
        started = time.perf_counter()
        try:
            service.begin(load(bundle))
            say(f"{service.name} is loaded ({time.perf_counter() - started:.2f} s)")
        except Exception as error:
            failed.append(error)
            stop.set()

    threading.Thread(target=server.run, daemon=True, name="connections").start()
    say(f"Serving {service.name} on {address}")
    _warn(host, settings, say)
    loading = threading.Thread(target=begin, daemon=True, name="loading")
    loading.start()
    stop.wait()
    if not failed:
        _drain(service, say)
    _flush(server)
    if loading.is_alive():
        os._exit(0)  # ONNX Runtime would abort the process in a normal exit
    service.close()
    if failed:
        raise failed[0]


class _Stop:
    """Set by SIGTERM or SIGINT; a second signal ends the process at once."""

    def __init__(self) -> None:
        self._set = False  # not an Event: the thread that a signal interrupts may hold its lock
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)

    def set(self) -> None:
        self._set = True

    def wait(self) -> None:
        while not self._set:
            time.sleep(0.1)

    def _signalled(self, number: int, frame: object) -> None:
        if self._set:
            os._exit(128 + number)
        self._set = True


def _drain(service: Service, say: Callable[[str], None]) -> None:
    service.stop()
    seconds = service.settings.drain
    say(f"Stopping; running requests get {seconds:g} s. The same signal again stops at once.")
    if not service.admission.wait_until_empty(seconds):
        say("Stopping with requests unfinished.")
        service.close()
        service.admission.wait_until_empty(FLUSH_SECONDS)


def _flush(server: TcpWSGIServer) -> None:
    """Wait until responses have been sent."""
    end = time.monotonic() + FLUSH_SECONDS
    channels = server.active_channels
    while time.monotonic() < end and any(c.requests or c.total_outbufs_len for c in list(channels.values())):
        time.sleep(0.02)
    server.task_dispatcher.shutdown(timeout=1)


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, where = found[0]
        listener = socket.create_server(where[:2], family=family, backlog=1024)
    except socket.gaierror as error:
        raise UserError(f"--host {host}", str(error.strerror), "give an address of this machine") from None
    except UnicodeError:
        raise UserError(f"--host {host}", "is not a valid host name", "give an address of this machine") from None
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        remedy = "another program listens there; give another --port" if taken else "give another --host or --port"
        raise UserError(f"--host {host} --port {port}", str(error), remedy) from None
    listener.setblocking(False)
    return listener


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _warn(host: str, settings: Settings, say: Callable[[str], None]) -> None:
    if host == "localhost" or _is_loopback(host):
        return
    keys = "" if settings.guard.keys else ", and without a key (--api-key-file) anyone there may use the model"
    say(f"Warning: {host} can be reached from other machines, unencrypted{keys}.")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
