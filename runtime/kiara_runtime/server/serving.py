"""Sockets, threads and signals: waitress around the routes.

waitress, because it is the one production WSGI server that tells an application whether its client is still there
(with a request looked ahead), needs nothing but Python on every system, and reads requests in one thread apart from
those that answer, so that slow senders take none of them.
"""

from __future__ import annotations

import contextlib
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

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher

from kiara_runtime.bundle import Bundle
from kiara_runtime.errors import UserError
from kiara_runtime.generate import Model
from kiara_runtime.memory import share_arena
from kiara_runtime.sampling import check_integer
from kiara_runtime.server.app import create_app
from kiara_runtime.server.guard import HEADERS, TOO_LARGE, ApiError
from kiara_runtime.server.service import Service, Settings

SPARE = 8  # threads beside those that generation may take, so that /health and refusals always find one
CONNECTIONS, OTHER_FILES = 1000, 100
PIPELINED = 16  # requests of a connection that are read ahead
MAX_HEADER_BYTES = 32 << 10
RECEIVE_SECONDS, IDLE_SECONDS = 30, 60  # for a request to arrive whole; for a connection to do anything
CLEANUP_SECONDS = 5  # between looks at what is late
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
        self.channel.refused = True
        self.write(body)


class _Channel(HTTPChannel):
    """A connection whose requests must arrive in time: waitress alone would let one come a byte a minute.

    One that is refused before it is whole is read to its end, or for as long as it had to arrive. Closed under a client
    that still sends, the connection would be reset, and the refusal lost with it (RFC 9112, section 9.6).
    """

    error_task_class = _Refusal
    began: float | None = None  # when the request that is being received did, or the reading of what is refused
    refused = False  # or its refusal is on its way
    ending = False  # all is said; what still comes is thrown away

    def handle_close(self) -> None:
        if not self._ends_gently():
            super().handle_close()

    def _ends_gently(self) -> bool:
        if not (self.refused and self.will_close and self.connected) or self.ending or self.total_outbufs_len:
            return False
        self.ending, self.will_close, self.began = True, False, time.monotonic()
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:  # the client is gone
            return False
        return True

    def received(self, data: bytes) -> bool:
        if self.ending:
            self.will_close = self.is_late(time.monotonic())
            return False
        try:
            went_on = super().received(data)
        except ValueError:  # of an address that is none, which waitress does not expect
            self.will_close = True
            return False
        now = time.monotonic()
        self.began = None if self.request is None else self.began or now
        if self.is_late(now):
            self.will_close = True
        return went_on

    def is_late(self, now: float) -> bool:
        return self.began is not None and now - self.began > RECEIVE_SECONDS


class _Connections(TcpWSGIServer):
    """waitress's server, which alone would wait for ever for a client that does not read its answer."""

    channel_class = _Channel

    def maintenance(self, now: float) -> None:
        super().maintenance(now)
        for channel in list(self.active_channels.values()):
            unread = channel.total_outbufs_len > 0 and channel.last_activity < now - IDLE_SECONDS
            if unread or (isinstance(channel, _Channel) and channel.is_late(time.monotonic())):
                channel.handle_close()  # at once, which wakes a thread that is writing to it


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
    share_arena()
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
    loading = threading.Thread(target=begin, daemon=True, name="loading")
    loading.start()
    stop.wait()
    if not failed:
        _drain(service, say)
    _flush(server)
    if loading.is_alive():
        os._exit(0)  # ONNX Runtime would abort the process at an orderly end
    service.close()
    if failed:
        raise failed[0]


def _server(service: Service, listener: socket.socket) -> TcpWSGIServer:
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns of what the admission bounds already
    adjustments = Adjustments(
        sockets=[listener],
        channel_request_lookahead=PIPELINED,  # sees a client leave while its request is being answered
        connection_limit=_connection_limit(),
        channel_timeout=IDLE_SECONDS,
        cleanup_interval=CLEANUP_SECONDS,
        max_request_header_size=MAX_HEADER_BYTES,
        max_request_body_size=service.settings.max_body + MAX_HEADER_BYTES,  # a little above what Flask refuses
        asyncore_use_poll=hasattr(select, "poll"),
        log_socket_errors=False,
        ident=None,
    )
    threads = ThreadedTaskDispatcher()
    threads.set_thread_count(service.admission.limit + SPARE)
    where = (listener.family, listener.type, listener.proto, listener.getsockname())
    return _Connections(
        create_app(service),
        {},
        True,
        listener,
        dispatcher=threads,
        adj=adjustments,
        sockinfo=where,
        bind_socket=False,
    )


def _connection_limit() -> int:
    """As many connections as there are descriptors for."""
    if not hasattr(select, "poll"):  # select() has room for 512
        return 400
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + OTHER_FILES
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return max(10, min(CONNECTIONS, soft - OTHER_FILES))


class _Stop:
    """Set by SIGTERM or SIGINT; a second one ends the process on the spot."""

    def __init__(self) -> None:
        self._set = False  # no Event: its lock may be held by the very thread that a signal interrupts
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
    except UnicodeError:
        raise UserError(f"--host {host}: no name of a machine; give an address of this one") from None
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
