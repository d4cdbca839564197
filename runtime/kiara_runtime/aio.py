"""An asyncio interface to `Model`; worker threads run the decode steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.engine import Piece, Pooling
from kiara_runtime.model import Model, Prompt
from kiara_runtime.sampling import Sampling, sampling_params
from kiara_runtime.stream import Generation, Score
from kiara_runtime.tokens import Message
from kiara_runtime.tools import Choice, Definition, tool_use

MOST_THREADS = 1024  # one per pending request, started on demand
Result = TypeVar("Result")


class AsyncModel:
    """`AsyncModel(kiara_runtime.load(...))`. Cancelling a task ends its request at the next step.

    It has its own thread pool, so that pending requests never block an application's `asyncio.to_thread`.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._threads = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="kiara")

    async def generate(self, prompt: Prompt, suffix: str | None = None, **sampling: Unpack[Sampling]) -> Generation:
        """Like `Model.generate`."""
        stream = self.model.stream(prompt, suffix, **sampling)
        try:
            return await self._in_thread(stream.generation)
        finally:
            stream.close()

    async def stream(
        self, prompt: Prompt, suffix: str | None = None, **sampling: Unpack[Sampling]
    ) -> AsyncIterator[Piece]:
        """Like `Model.stream`."""
        stream = self.model.stream(prompt, suffix, **sampling)
        try:
            while (piece := await self._in_thread(partial(next, stream, None))) is not None:
                yield piece
        finally:
            stream.close()

    async def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Definition] | None = None,
        tool_choice: Choice = "auto",
        parallel_tool_calls: bool = True,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """Like `Model.chat`."""
        use = tool_use(tools, tool_choice, parallel_tool_calls)
        stream, format = await self._in_thread(self.model.begin_chat, messages, use, sampling_params(sampling))
        try:
            return await self._in_thread(stream.generation, format)
        finally:
            stream.close()

    async def score(self, prompt: Prompt, continuation: Prompt) -> Score:
        """Like `Model.score`."""
        return await self._in_thread(self.model.score, prompt, continuation)

    async def embed(
        self,
        texts: Sequence[Prompt],
        pooling: Pooling = "mean",
        dimensions: int | None = None,
        normalize: bool = True,
    ) -> NDArray[np.float32]:
        """Like `Model.embed`."""
        return await self._in_thread(self.model.embed, texts, pooling, dimensions, normalize)

    def close(self) -> None:
        """Close the model. Each thread ends when its request does."""
        self.model.close()
        self._threads.shutdown(wait=False)

    async def _in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
