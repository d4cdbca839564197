from typing import Any

class ErrorTask:
    request: Any
    status: str
    content_length: int
    response_headers: list[tuple[str, str]]
    def execute(self) -> None: ...
    def set_close_on_finish(self) -> None: ...
    def write(self, data: bytes) -> None: ...
