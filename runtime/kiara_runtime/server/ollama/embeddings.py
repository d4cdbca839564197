"""/api/embed and /api/embeddings: texts to vectors, with Ollama's names."""

from __future__ import annotations

import time
from typing import Annotated, Any

from pydantic import Field

from kiara_runtime.server.jobs import Patience, Work
from kiara_runtime.server.ollama.requests import Ignored, Options
from kiara_runtime.server.openai.embeddings import VectorVoice, numbers
from kiara_runtime.server.openai.responses import Response
from kiara_runtime.server.served import ServedModel
from kiara_runtime.server.values import ByForm, Dimensions, Inputs, One, Request, Text
from kiara_runtime.server.voice import Voice


class _Embedding(Request):
    model: str = Field(description="The id that /api/tags gives, with or without `:latest`.")
    options: Options | None = Ignored
    keep_alive: Any = Ignored

    @property
    def stream(self) -> bool:
        """An answer comes whole."""
        return False

    @property
    def user(self) -> None:
        """Ollama's requests name no user."""
        return


class EmbedRequest(_Embedding):
    input: Annotated[Annotated[Text, One] | Inputs, ByForm]
    truncate: bool | None = Field(None, description="Cut texts that exceed the context, as by default.")
    dimensions: Dimensions | None = Field(None, description="Keep only the first entries.")


class OneRequest(_Embedding):
    """Of the older endpoint."""

    prompt: Text


class Embedded(Response):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int = 0
    prompt_eval_count: int


class OneEmbedded(Response):
    embedding: list[float]


def embed(served: ServedModel, asked: EmbedRequest, id: str, patience: Patience) -> tuple[Work, Voice]:
    """The work of embedding texts."""
    began = time.perf_counter_ns()
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    cut = asked.truncate is not False
    work = served.embedding([_ids(served, text, cut) for text in texts], "mean", asked.dimensions, patience)

    def answer(vectors: list[Any]) -> Embedded:
        taken = time.perf_counter_ns() - began
        found = [numbers(vector) for vector in vectors]
        return Embedded(model=asked.model, embeddings=found, total_duration=taken, prompt_eval_count=work.prompt_tokens)

    return work, VectorVoice(work, asked.dimensions, answer)


def embed_one(served: ServedModel, asked: OneRequest, id: str, patience: Patience) -> tuple[Work, Voice]:
    """The work of embedding one text."""
    work = served.embedding([_ids(served, asked.prompt, cut=True)], "mean", None, patience)
    return work, VectorVoice(work, None, lambda vectors: OneEmbedded(embedding=numbers(vectors[0])))


def _ids(served: ServedModel, text: str, cut: bool) -> list[int]:
    model = served.model
    ids = model.encode_prompt(text)
    return model.prompt_ids(ids[: model.context_length - 1] if cut else ids, "input")
