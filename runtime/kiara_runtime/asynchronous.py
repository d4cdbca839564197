"""The same model for asyncio: nothing here computes, the steps run in worker threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from kiara_runtime.chat import Message
from kiara_runtime.generate import Generation, Model, Prompt, Score
from kiara_runtime.sequence import Piece


class AsyncModel:
    """`AsyncModel(kiara_runtime.load(...))`. Cancelling a task ends its request at the next step."""

    def __init__(self, model: Model) -> None:
        self.model = model

    async def generate(self, prompt: Prompt, **sampling: Any) -> Generation:
        """As `Model.generate`."""
        stream = self.model.stream(prompt, **sampling)
        try:
            return await asyncio.to_thread(stream.generation)
        finally:
            stream.close()

    async def stream(self, prompt: Prompt, **sampling: Any) -> AsyncIterator[Piece]:
        """As `Model.stream`."""
        stream = self.model.stream(prompt, **sampling)
        try:
            while (piece := await asyncio.to_thread(next, stream, None)) is not None:
                yield piece
        finally:
            stream.close()

    async def chat(self, messages: Sequence[Message], **sampling: Any) -> Generation:
        """As `Model.chat`."""
        return await self.generate(self.model.chat_prompt(messages), **sampling)

    async def score(self, prompt: Prompt, continuation: Prompt) -> Score:
        """As `Model.score`."""
        return await asyncio.to_thread(self.model.score, prompt, continuation)
