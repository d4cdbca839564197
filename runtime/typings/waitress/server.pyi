from typing import Any

from waitress.channel import HTTPChannel

class Dispatcher:
    def shutdown(self, cancel_pending: bool = ..., timeout: float = ...) -> bool: ...

class TcpWSGIServer:
    channel_class: type[HTTPChannel]
    active_channels: dict[int, HTTPChannel]
    task_dispatcher: Dispatcher
    def run(self) -> None: ...

def create_server(application: Any, **adjustments: Any) -> TcpWSGIServer: ...
