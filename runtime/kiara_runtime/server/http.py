"""waitress's connections, with time limits on slow clients and every refusal in one format.

waitress is used because it tells an application whether its client is still connected (by reading ahead), runs on
every system in pure Python, and reads requests in a separate thread, so that slow senders block no worker.
"""

# The type stubs of waitress lack the base class of its channels.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportUntypedBaseClass=false

from __future__ import annotations

import contextlib
import logging
import select
import socket
import time
import uuid
from typing import Any

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.receiver import ChunkedReceiver
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask
from waitress.utilities import BadRequest

from kiara_runtime.server.address import UNIX
from kiara_runtime.server.guard import TOO_LARGE, ApiError
from kiara_runtime.server.records import GONE, Record, request_id
from kiara_runtime.server.routes import create_app, routes
from kiara_runtime.server.service import Service

SPARE = 8  # threads in addition to those that generation can occupy, so that /health and refusals always have one
CONNECTIONS, OTHER_FILES = 1000, 100
FILES = 3  # descriptors per connection: its socket, and one each for a large body and a large response
PIPELINED = 16  # requests per connection that are read ahead
MAX_HEADER_BYTES = 32 << 10
RECEIVE_SECONDS, IDLE_SECONDS = 30, 60  # for a request to arrive completely; for a connection without activity
CLEANUP_SECONDS = 5  # between checks of time limits
MAX_THROWN_AWAY = 256 << 20  # bytes of a refused request that are read so that its response can arrive
TLS_HANDSHAKE = b"\x16"


class _Request(HTTPRequestParser):
    path = ""  # of invalid requests
    begun = False  # being answered

    def received(self, data: bytes) -> int:
        if not self.headers_finished and not self.header_plus and data[:1] == TLS_HANDSHAKE:
            self.parse_header(b"GET / HTTP/1.0\r\n")
            self.error = BadRequest("this server speaks plain HTTP, no TLS; use http://")
            self.completed = True
            return len(data)
        consumed = super().received(data)
        rest = self.body_rcv
        if isinstance(rest, ChunkedReceiver) and len(rest.control_line) + len(rest.trailer) > MAX_HEADER_BYTES:
            self.error, self.completed = BadRequest("a chunk's head or the trailer is too long"), True
        return len(data) if self.error else consumed  # bytes after a refused request belong to it

    def parse_header(self, header_plus: bytes) -> None:
        """Check what waitress does not: exactly one Host (RFC 9112, 3.2), and not two lengths of a body (6.1)."""
        try:
            super().parse_header(header_plus)
        except ValueError:  # an invalid address or length, which waitress does not expect
            raise ParsingError("the address or the Content-Length is invalid") from None
        hosts = self.headers.get("HOST", "" if self.version == "1.0" else None)
        if hosts is None or "," in hosts:
            raise ParsingError("exactly one Host header is required")
        if self.chunked and "CONTENT_LENGTH" in self.headers:
            raise ParsingError("Content-Length and Transfer-Encoding exclude each other")


class _TooLate(BadRequest):
    code, reason = 408, "Request Timeout"


class _Answer(WSGITask):
    def execute(self) -> None:
        self.request.begun = True
        super().execute()


class _Refusal(ErrorTask):
    """A request that waitress itself refuses, such as invalid HTTP, answered in the format of other errors."""

    def execute(self) -> None:
        channel, request, fault = self.channel, self.request, self.request.error
        request.begun = channel.refused = True
        late = {"Retry-After": "1"} if isinstance(fault, _TooLate) else {}
        told = " ".join(f"{fault.reason}: {fault.body}".split())
        refusal = ApiError(int(fault.code), told, code="request_timeout" if late else "bad_http", headers=late)
        if refusal.status == TOO_LARGE.status:
            refusal = TOO_LARGE
        body = refusal.body.model_dump_json().encode()
        self.status = f"{fault.code} {fault.reason}"
        self.content_length = len(body)
        headers = channel.server.note(request, refusal.status, error=refusal.reason)
        self.response_headers.extend(
            {**headers, **refusal.headers, "Content-Type": "application/json", "Content-Length": str(len(body))}.items()
        )
        self.set_close_on_finish()
        self.write(body)


class _Channel(HTTPChannel):
    """A connection with a time limit for requests to arrive; waitress itself has none.

    A request that is refused before it has arrived completely is still read to its end, within its time limit. Closing
    the connection while the client sends would reset it, and lose the response (RFC 9112, section 9.6).
    """

    parser_class, task_class, error_task_class = _Request, _Answer, _Refusal
    began: float | None = None  # when the current request, or the rest of a refused one, began to arrive
    refused = False  # a refusal is being sent
    ending = False  # the response is sent; further input is discarded
    thrown_away = 0  # bytes
    waiting: tuple[_Request, ...] = ()  # requests that have arrived but are not being answered yet

    def readable(self) -> bool:
        return (
            self.socket is not None and super().readable()
        )  # closed in this iteration, so its descriptor may be reused

    def writable(self) -> bool:
        return self.socket is not None and super().writable()

    def handle_expt(self) -> None:
        self.handle_close()  # urgent data is never read, so poll would report it forever

    def handle_close(self) -> None:
        if not self._ends_gently():
            super().handle_close()

    def _ends_gently(self) -> bool:
        if not (self.refused and self.will_close and self.connected) or self.ending or self.total_outbufs_len:
            return False
        self.ending, self.will_close, self.began = True, False, time.monotonic()
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:  # the client has disconnected
            return False
        return True

    def received(self, data: bytes) -> bool:
        now = time.monotonic()
        if self.ending or any(request.error for request in self.requests[-1:]):
            self.thrown_away += len(data)
            self.will_close = self.is_late(now) or self.thrown_away > MAX_THROWN_AWAY
            return False
        went_on = super().received(data)
        known = dict.fromkeys((*self.waiting, *self.requests))
        self.waiting = tuple(request for request in known if not request.begun)
        # The time limit of a pipelined request starts when the one before it is answered.
        self.began = None if self.request is None or self.requests else self.began or now
        if self.is_late(now):
            self.refuse_late()
        return went_on

    def is_late(self, now: float) -> bool:
        return self.began is not None and now - self.began > RECEIVE_SECONDS

    def refuse_late(self) -> None:
        """Answer a request that has not arrived in time, and end the connection."""
        with self.requests_lock:
            request, self.request = self.request, None
            if request is None or self.requests or self.ending:
                self.will_close = True
                return
            request.error, request.completed = _TooLate("the request has not arrived in time; send it again"), True
            self.requests.append(request)
            self.began = None
            self.server.add_task(self)

    def send_continue(self) -> None:
        """Send it only if more is expected; waitress would also send it for a request that is complete or refused."""
        if self.request.completed:
            self.request.expect_continue = False
        else:
            super().send_continue()

    def service(self) -> None:
        super().service()
        if self.connected:
            return
        with self.requests_lock:
            gone, self.waiting = [request for request in self.waiting if not request.begun], ()
        for request in gone:
            self.server.note(request, GONE)


class _Connections(TcpWSGIServer):
    """waitress's server, with a time limit for clients that do not read their response; waitress itself has none."""

    channel_class = _Channel

    def __init__(self, service: Service, *arguments: Any, **options: Any) -> None:
        app = create_app(service)
        self._service, self._routes = service, routes(app)
        super().__init__(app, *arguments, **options)

    @property
    def _on_unix_socket(self) -> bool:
        return self.sockinfo[0] == UNIX

    def getsockname(self) -> Any:
        return ("unix", self.socket.getsockname()) if self._on_unix_socket else super().getsockname()

    def set_socket_options(self, conn: socket.socket) -> None:
        if not self._on_unix_socket:  # the options are those of TCP
            super().set_socket_options(conn)

    def fix_addr(self, addr: Any) -> Any:
        return ("localhost", None) if self._on_unix_socket else addr

    def maintenance(self, now: float) -> None:
        for channel in list(self.active_channels.values()):
            unread = channel.total_outbufs_len > 0 and channel.last_activity < now - IDLE_SECONDS
            if unread:
                channel.handle_close()  # closing wakes a thread that is writing to it
            elif isinstance(channel, _Channel) and channel.is_late(time.monotonic()):
                channel.refuse_late()
        super().maintenance(now)  # last: it closes idle connections, and one with a refusal to send is not idle

    def note(self, request: _Request, status: int, **details: str) -> dict[str, str]:
        """Count and log a request that reached no route; returns the headers of its response."""
        told: str = getattr(request, "command", "") if request.headers_finished else ""
        path = request.path if told and request.path in self._routes else "unknown"
        given = request_id(request.headers.get("X_REQUEST_ID"))
        record = Record(uuid.uuid4().hex, told or "unknown", path, status, given, details=dict(details))
        record.end(self._service.metrics, self._service.log, self._service.trace)
        return {**self._service.guard.headers(request.headers.get("ORIGIN")), "X-Request-Id": record.shown_id}


def connections(service: Service, listener: socket.socket) -> TcpWSGIServer:
    """A server that answers connections to `listener` while its `run` is executed."""
    logging.getLogger("waitress.queue").setLevel(
        logging.ERROR
    )  # its warnings are about queue length, which admission bounds already
    adjustments = Adjustments(
        sockets=[listener],
        channel_request_lookahead=PIPELINED,  # detects a disconnect while the request is being answered
        connection_limit=_connection_limit(),
        channel_timeout=IDLE_SECONDS,
        cleanup_interval=CLEANUP_SECONDS,
        max_request_header_size=MAX_HEADER_BYTES,
        max_request_body_size=service.settings.max_body
        + MAX_HEADER_BYTES,  # slightly above the limit that Flask enforces
        asyncore_use_poll=hasattr(select, "poll"),
        log_socket_errors=False,
        url_prefix=service.settings.root_path,
        **_forwarded(service.settings.trusted_proxy),
        ident=None,
    )
    threads = ThreadedTaskDispatcher()
    threads.set_thread_count(service.admission.limit + SPARE)
    where = (listener.family, listener.type, listener.proto, listener.getsockname())
    return _Connections(
        service, {}, True, listener, dispatcher=threads, adj=adjustments, sockinfo=where, bind_socket=False
    )


def _forwarded(proxy: str | None) -> dict[str, Any]:
    """Believe the X-Forwarded headers of this proxy, and of nobody else."""
    if proxy is None:
        return {"clear_untrusted_proxy_headers": True}
    names = {f"x-forwarded-{name}" for name in ("for", "host", "proto", "port")}
    return {"trusted_proxy": proxy, "trusted_proxy_headers": names, "clear_untrusted_proxy_headers": True}


def _connection_limit() -> int:
    """The number of connections that the file descriptors allow."""
    if not hasattr(select, "poll"):  # select() is limited to 512
        return 400
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES * CONNECTIONS + OTHER_FILES
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return max(10, min(CONNECTIONS, (soft - OTHER_FILES) // FILES))
