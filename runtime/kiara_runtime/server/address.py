"""Where the server listens: an address and port, or a Unix socket."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from kiara_runtime.errors import UserError

UNIX: int | None = getattr(socket, "AF_UNIX", None)  # missing on Windows
BACKLOG = 1024


@dataclass(frozen=True)
class Address:
    """unix_socket: listen on this file instead of host and port."""

    host: str = "127.0.0.1"
    port: int = 8000
    unix_socket: Path | None = None

    def listen(self) -> socket.socket:
        """Raises UserError if the address cannot be used, or another program listens there."""
        listener = self._tcp() if self.unix_socket is None else self._unix(self.unix_socket)
        listener.setblocking(False)
        return listener

    def shown(self, listener: socket.socket) -> str:
        if self.unix_socket is not None:
            return f"unix:{self.unix_socket}"
        host, port = listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def remove(self) -> None:
        """Remove the socket's file."""
        if self.unix_socket is not None:
            with contextlib.suppress(OSError):
                self.unix_socket.unlink()

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine can connect."""
        if self.unix_socket is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def _tcp(self) -> socket.socket:
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, *_, where = found[0]
            return socket.create_server(where[:2], family=family, backlog=BACKLOG)
        except socket.gaierror as error:
            raise UserError(f"--host {self.host}", str(error.strerror), "give an address of this machine") from None
        except UnicodeError:
            raise UserError(
                f"--host {self.host}", "is not a valid host name", "give an address of this machine"
            ) from None
        except (OSError, OverflowError) as error:
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            remedy = "another program listens there; give another --port" if taken else "give another --host or --port"
            raise UserError(f"--host {self.host} --port {self.port}", str(error), remedy) from None

    def _unix(self, path: Path) -> socket.socket:
        field = f"--unix-socket {path}"
        if UNIX is None:
            raise UserError(field, "this system has no Unix sockets", "use --host and --port")
        _remove_stale(path, field)
        listener = socket.socket(UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise UserError(field, error.strerror or str(error), "give a path that can be created") from None
        return listener


def _remove_stale(path: Path, field: str) -> None:
    """Remove the file of a socket that nobody listens on any more."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise UserError(field, "is a file and no socket", "give another path")
    except OSError:
        return
    with socket.socket(UNIX or 0, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise UserError(field, "another program listens there", "give another path")
