"""The sequences of one HTTP request in the engine: how many at once, deadline, disconnects.

Response formats are in `openai`, access control in `guard`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kiara_runtime.engine import Piece
from kiara_runtime.model import Model
from kiara_runtime.server.guard import ApiError, queue_full, stopping
from kiara_runtime.server.records import Metrics
from kiara_runtime.stream import Stream

TICK = 0.25  # seconds between checks for a disconnect or the deadline while no piece arrives


class Admission:
    """Count running requests, and refuse those above the limit before any work is done. A context manager."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._inside, self._closed = 0, False
        self._changed = threading.Condition()

    def enter(self) -> None:
        """Raises ApiError if the limit is reached or the server is stopping."""
        with self._changed:
            if self._closed:
                raise stopping()
            if self._inside >= self.limit:
                raise queue_full(f"the queue is full ({self.limit} requests are in); try again later")
            self._inside += 1

    def leave(self) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, *_: object) -> None:
        self.leave()

    def close(self) -> None:
        """Refuse all further requests."""
        with self._changed:
            self._closed = True

    def wait_until_empty(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._inside == 0, seconds)


@dataclass
class Patience:
    """Deadline and disconnect check of a request. end: in time.monotonic. gone: whether the client has disconnected."""

    end: float
    gone: Callable[[], bool]

    def check(self) -> None:
        """Raise the error that ends the request, if any."""
        if self.gone():
            raise ClientGoneError
        if time.monotonic() > self.end:
            said = "timeout: the request took longer than the server's --timeout allows"
            raise ApiError(
                504, said, code="timeout", headers={"X-Should-Retry": "false"}
            )  # OpenAI's clients retry by default


class ClientGoneError(Exception):
    """The client has disconnected."""


@dataclass(frozen=True)
class Prompt:
    """heal: the prompt was given as text, so its end may be inside a token."""

    ids: list[int]
    heal: bool = False


class Work:
    """`n` continuations of each prompt, at most `window` of them in the engine at once, so that others get slots.

    streams: of the choices that have been started, in order; those of the first prompt come first.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        n: int,
        start: Callable[[Prompt, int], Stream],
        window: int,
        patience: Patience,
        metrics: Metrics,
    ) -> None:
        """start: queues the continuation of a prompt with this index."""
        self._model, self._start, self._window, self._patience = model, start, window, patience
        self._metrics = metrics
        self._planned = [(prompt, choice) for prompt in prompts for choice in range(n)]
        self.streams: list[Stream] = []
        self._running: dict[int, Stream] = {}
        self._came: dict[int, float] = {}  # time of a choice's last token
        try:
            self._fill()  # here, so that invalid requests are refused before a response begins
        except BaseException:
            self.close()
            raise

    def events(self) -> Iterator[tuple[int, Piece] | None]:
        """Yield a choice's number and its next piece; None regularly while there is none.

        Raises ClientGoneError, ApiError at the deadline, and the error of a sequence.
        """
        while self._running:
            self._patience.check()
            found = [(index, piece) for index, stream in self._running.items() for piece in self._ready(stream)]
            for index, piece in found:
                self._measure(index, piece)
                if piece.finish_reason is not None:
                    del self._running[index]
                yield index, piece
            self._fill()
            if not found and self._running:
                self._model.wait(list(self._running.values()), TICK)
                yield None

    def close(self) -> None:
        """End the sequences that are still running."""
        for index, stream in self._running.items():
            if index not in self._came:
                self._metrics.queue.observe(stream.sequence.queue_seconds)
            stream.close()
        self._running.clear()

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts that were started; each counts once, because its continuations share it."""
        return sum(stream.sequence.prompt_tokens for stream in self._firsts())

    @property
    def completion_tokens(self) -> int:
        return sum(len(stream.sequence.tokens) - stream.sequence.prompt_tokens for stream in self.streams)

    @property
    def cached_tokens(self) -> int:
        return sum(stream.sequence.reused for stream in self._firsts())

    def _firsts(self) -> list[Stream]:
        begun = zip(self.streams, self._planned, strict=False)
        return [stream for stream, (_, choice) in begun if choice == 0]

    def _fill(self) -> None:
        while len(self._running) < self._window and len(self.streams) < len(self._planned):
            self._patience.check()  # compiling a grammar can take seconds
            prompt, choice = self._planned[len(self.streams)]
            stream = self._start(prompt, choice)
            self._running[len(self.streams)] = stream
            self.streams.append(stream)

    @staticmethod
    def _ready(stream: Stream) -> Iterator[Piece]:
        while stream.ready:
            piece = next(stream)
            yield piece
            if piece.finish_reason is not None:
                return

    def _measure(self, index: int, piece: Piece) -> None:
        sequence, now = self.streams[index].sequence, time.perf_counter()
        if index not in self._came:
            if piece.tokens or piece.finish_reason == "stop":  # no sequence if only the prompt is scored
                self._metrics.first_token.observe(now - sequence.times[0])
            self._metrics.queue.observe(sequence.queue_seconds)
        elif piece.tokens:
            self._metrics.inter_token.observe(now - self._came[index])
        self._came[index] = now
