"""What an endpoint's format has to provide: the whole response, and the events of a stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import pydantic

from kiara_runtime.engine import Piece
from kiara_runtime.server.guard import ApiError
from kiara_runtime.server.jobs import Work


class Voice(ABC):
    """The response format of an endpoint."""

    end = b""  # after the last event
    waiting = b": waiting\n\n"  # while there is nothing to send, so that both sides notice a lost connection
    mimetype = "text/event-stream"

    def __init__(self, work: Work) -> None:
        self._work = work

    def opening(self) -> Iterable[pydantic.BaseModel]:
        """Chunks before the first token."""
        return ()

    @abstractmethod
    def chunks(self, index: int, piece: Piece) -> Iterable[pydantic.BaseModel]:
        """The chunks of a piece; none if it has nothing to send yet."""

    @abstractmethod
    def whole(self, choices: Sequence[list[Piece]]) -> pydantic.BaseModel:
        """The whole response, from all pieces of each choice."""

    @abstractmethod
    def closing(self) -> Iterable[pydantic.BaseModel]:
        """The last chunks."""

    @abstractmethod
    def event(self, chunk: pydantic.BaseModel) -> bytes:
        """A chunk as a server-sent event."""

    @abstractmethod
    def failure(self, refusal: ApiError) -> bytes:
        """The event of an error that ends the stream."""
