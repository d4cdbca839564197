"""Sockets, threads and signals: waitress around the routes.

waitress, because it is the one production WSGI server that tells an application whether its client is still there
(with a request looked ahead), needs nothing but Python on every system, and reads requests in one thread apart from
those that answer, so that slow senders take none of them.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer, create_server
from waitress.task import ErrorTask

from kiara_runtime.bundle import Bundle
from kiara_runtime.errors import UserError
from kiara_runtime.generate import Model
from kiara_runtime.sampling import check_integer
from kiara_runtime.server.app import create_app
from kiara_runtime.server.guard import HEADERS, TOO_LARGE, ApiError
from kiara_runtime.server.service import Service, Settings

SPARE = 8  # threads beside those that generation may take, so that /health and refusals always find one
CONNECTIONS = 1000
MAX_HEADER_BYTES = 32 << 10
RECEIVE_SECONDS, IDLE_SECONDS = 30, 60  # for a request to arrive whole; for a connection to do anything
FLUSH_SECONDS = 2.0


class _Refusal(ErrorTask):
    """What waitress itself refuses, such as a request that is no HTTP, in the shape of every other refusal."""

    def execute(self) -> None:
        fault = self.request.error
        refusal = ApiError(int(fault.code), " ".join(f"{fault.reason}: {fault.body}".split()), code="bad_http")
        if refusal.status == 413:
            refusal = TOO_LARGE
        body = refusal.body.model_dump_json().encode()
        self.status = f"{fault.code} {fault.reason}"
        self.content_length = len(body)
        headers = {**HEADERS, "Content-Type": "application/json", "Content-Length": str(len(body))}
        self.response_headers.extend(headers.items())
        self.set_close_on_finish()
        self.write(body)


class _Channel(HTTPChannel):
    """A connection whose requests must arrive in time: waitress alone would let one come a byte a minute."""

    error_task_class = _Refusal
    began: float | None = None  # when the request that is being received did

    def received(self, data: bytes) -> bool:
        went_on = super().received(data)
        now = time.monotonic()
        self.began = None if self.request is None else self.began or now
        if self.began is not None and now - self.began > RECEIVE_SECONDS:
            self.will_close = True
        return went_on


def serve(
    path: Path,
    host: str,
    port: int,
    settings: Settings,
    variant: str | None,
    load: Callable[[], Model],
    say: Callable[[str], None],
) -> None:
    """Serve a bundle until a signal ends it. The model is loaded while the server already answers.

    say: receives lines for a person. Raises UserError where the bundle, the address or the settings will not do.
    """
    check_integer("slots", settings.slots, 1, 1024)
    check_integer("queue", settings.queue, 0, 4096)
    bundle = Bundle.open(path)
    bundle.variant_file(variant)
    listener = _listen(host, port)
    service = Service(bundle, variant, settings)
    server = _server(service, listener)
    address = _address(*listener.getsockname()[:2])
    stop = _Stop()
    failed: list[Exception] = []

    def begin() -> None:
        started = time.perf_counter()
        try:
            service.begin(load())
            say(f"{service.name} is loaded ({time.perf_counter() - started:.2f} s)")
        except Exception as error:
            failed.append(error)
            stop.set()

    threading.Thread(target=server.run, daemon=True, name="connections").start()
    say(f"Serving {service.name} on {address}")
    _warn(host, settings, say)
    threading.Thread(target=begin, daemon=True, name="loading").start()
    stop.wait()
    if not failed:
        _drain(service, say)
    _flush(server)
    service.close()
    if failed:
        raise failed[0]


def _server(service: Service, listener: socket.socket) -> TcpWSGIServer:
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns of what the admission bounds already
    server = create_server(
        create_app(service),
        sockets=[listener],
        threads=service.admission.limit + SPARE,
        channel_request_lookahead=1,  # sees a client leave while its request is being answered
        connection_limit=CONNECTIONS,
        channel_timeout=IDLE_SECONDS,
        cleanup_interval=5,
        max_request_header_size=MAX_HEADER_BYTES,
        # Well above the limit that the application tells politely; beyond it the connection is cut.
        max_request_body_size=8 * service.settings.max_body,
        asyncore_use_poll=hasattr(select, "poll"),
        log_socket_errors=False,
        ident=None,
    )
    server.channel_class = _Channel
    return server


class _Stop:
    """Set by SIGTERM or SIGINT; a second one ends the process on the spot."""

    def __init__(self) -> None:
        self._event = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)

    def set(self) -> None:
        self._event.set()

    def wait(self) -> None:
        while not self._event.wait(0.5):  # in parts, as a wait without end hears no Ctrl-C on Windows
            pass

    def _signalled(self, number: int, frame: object) -> None:
        if self._event.is_set():
            os._exit(128 + number)
        self._event.set()


def _drain(service: Service, say: Callable[[str], None]) -> None:
    service.stop()
    seconds = service.settings.drain
    say(f"Stopping; running requests get {seconds:g} s. The same signal again stops at once.")
    if not service.admission.wait_until_empty(seconds):
        say("Stopping with requests unfinished.")
        service.close()
        service.admission.wait_until_empty(FLUSH_SECONDS)


def _flush(server: TcpWSGIServer) -> None:
    """Let what was answered reach its client."""
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
        raise UserError(f"--host {host}: {error.strerror}; give an address of this machine") from None
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        remedy = "another program listens there; give another --port" if taken else "give another --host or --port"
        raise UserError(f"--host {host} --port {port}: {error}; {remedy}") from None
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
