"""One HTTP request's sequences in the engine: how many at once, until when, and for whom.

Nothing here knows how an answer looks (`wording`) or who asked (`guard`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kiara_runtime.engine import Piece
from kiara_runtime.model import Model
from kiara_runtime.sampling import SamplingParams
from kiara_runtime.server.guard import ApiError, busy
from kiara_runtime.server.records import Metrics
from kiara_runtime.stream import Stream

TICK = 0.25  # seconds: how soon a client's leaving and the deadline are seen while nothing comes


class Admission:
    """Counts the requests that are being served, and refuses those above the limit before any work is done.

    `with` one: enter and leave.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._inside, self._closed = 0, False
        self._changed = threading.Condition()

    def enter(self) -> None:
        """Raises ApiError where all places are taken, or the server is stopping."""
        with self._changed:
            if self._closed:
                raise busy("the server is stopping", "shutting_down")
            if self._inside >= self.limit:
                raise busy(f"the queue is full ({self.limit} requests are in); try again later", "queue_full")
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
        """Let nobody in any more."""
        with self._changed:
            self._closed = True

    def wait_until_empty(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._inside == 0, seconds)


@dataclass
class Patience:
    """end: by time.monotonic. gone: whether the client has left."""

    end: float
    gone: Callable[[], bool]

    def check(self) -> None:
        """Raises what ends the request."""
        if self.gone():
            raise ClientGoneError
        if time.monotonic() > self.end:
            said = "timeout: the request took longer than the server's --timeout allows"
            raise ApiError(504, said, code="timeout", headers={"X-Should-Retry": "false"})  # as OpenAI's clients would


class ClientGoneError(Exception):
    """Nobody waits for the answer."""


@dataclass(frozen=True)
class Prompt:
    """heal: it was given as a text, whose end may be inside a token."""

    ids: list[int]
    heal: bool = False


class Work:
    """`n` continuations of each prompt, at most `window` of them in the engine at once, so that others get slots too.

    streams: of the choices, in their order, as far as they have begun: those of the first prompt come first.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        n: int,
        params: SamplingParams,
        window: int,
        patience: Patience,
        metrics: Metrics,
    ) -> None:
        self._model, self._params, self._window, self._patience = model, params, window, patience
        self._metrics = metrics
        self._planned = [(prompt, choice) for prompt in prompts for choice in range(n)]
        self.streams: list[Stream] = []
        self._running: dict[int, Stream] = {}
        self._came: dict[int, float] = {}  # when a choice's last token came
        try:
            self._fill()  # here, so that what cannot be run is refused before an answer begins
        except BaseException:
            self.close()
            raise

    def events(self) -> Iterator[tuple[int, Piece] | None]:
        """A choice's number and its next piece, as they come; None now and then while none does.

        Raises ClientGoneError, ApiError at the deadline, and whatever a sequence ends with.
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
        """End what still runs."""
        for index, stream in self._running.items():
            if index not in self._came:
                self._metrics.queue.observe(stream.sequence.queue_seconds)
            stream.close()
        self._running.clear()

    @property
    def prompt_tokens(self) -> int:
        """Of each prompt that was begun, once, as its continuations share it."""
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
            self._patience.check()  # a grammar may take seconds to begin
            prompt, choice = self._planned[len(self.streams)]
            stream = self._model.start(prompt.ids, self._params, choice, prompt.heal)
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
            if piece.tokens or piece.finish_reason == "stop":  # none where only the prompt is scored
                self._metrics.first_token.observe(now - sequence.times[0])
            self._metrics.queue.observe(sequence.queue_seconds)
        elif piece.tokens:
            self._metrics.inter_token.observe(now - self._came[index])
        self._came[index] = now
