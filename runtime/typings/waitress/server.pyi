import socket
from collections.abc import Callable
from typing import Any

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.task import ThreadedTaskDispatcher

class TcpWSGIServer:
    channel_class: type[HTTPChannel]
    active_channels: dict[int, HTTPChannel]
    task_dispatcher: ThreadedTaskDispatcher
    def __init__(
        self,
        application: Callable[..., Any],
        map: dict[int, Any],
        _start: bool,
        _sock: socket.socket,
        dispatcher: ThreadedTaskDispatcher,
        adj: Adjustments,
        sockinfo: tuple[Any, ...],
        bind_socket: bool,
    ) -> None: ...
    def run(self) -> None: ...
    def maintenance(self, now: float) -> None: ...
