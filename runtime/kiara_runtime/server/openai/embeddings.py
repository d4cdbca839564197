"""/v1/embeddings: requests, responses, and the work between them. Names are OpenAI's, apart from `pooling`."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field

from kiara_runtime.embeddings import vector_of
from kiara_runtime.engine import Piece, Pooling
from kiara_runtime.server.guard import ApiError
from kiara_runtime.server.jobs import Patience, Work
from kiara_runtime.server.openai.responses import Response
from kiara_runtime.server.served import ServedModel
from kiara_runtime.server.values import ByForm, Dimensions, Ids, InputIds, Inputs, One, Request, Text, TokenIds, listed
from kiara_runtime.server.voice import Voice


class EmbeddingRequest(Request):
    input: Annotated[Annotated[Text, One] | Inputs | Annotated[TokenIds, Ids] | InputIds, ByForm] = Field(
        description="Texts, or their token ids."
    )
    model: str | None = Field(None, description="The id that /v1/models gives.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: of little-endian float32, a third of the size."
    )
    dimensions: Dimensions | None = Field(None, description="Keep only the first entries.")
    user: str | None = Field(None, max_length=256, description="Written to the log.")
    pooling: Pooling | None = Field(None, description="Not OpenAI's: mean of all tokens (default), or the last token.")

    @property
    def stream(self) -> bool:
        """An answer comes whole."""
        return False


class Embedding(Response):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Response):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Response):
    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


def embed(served: ServedModel, asked: EmbeddingRequest, id: str, patience: Patience) -> tuple[Work, Voice]:
    """The work of embedding texts; of a length of 1, as OpenAI's are."""
    ids = [served.model.prompt_ids(text, f"input[{i}]") for i, text in enumerate(listed(asked.input))]
    work = served.embedding(ids, asked.pooling or "mean", asked.dimensions, patience)

    def answer(vectors: list[NDArray[np.float32]]) -> EmbeddingList:
        coded = [_base64(vector) if asked.encoding_format == "base64" else numbers(vector) for vector in vectors]
        usage = EmbeddingUsage(prompt_tokens=work.prompt_tokens, total_tokens=work.prompt_tokens)
        data = [Embedding(index=index, embedding=embedding) for index, embedding in enumerate(coded)]
        return EmbeddingList(model=served.name, data=data, usage=usage)

    return work, VectorVoice(work, asked.dimensions, answer)


class VectorVoice(Voice):
    """The whole answer of texts to embed, from their vectors (D,); there are no events."""

    def __init__(
        self, work: Work, dimensions: int | None, answer: Callable[[list[NDArray[np.float32]]], pydantic.BaseModel]
    ) -> None:
        super().__init__(work)
        self._dimensions, self._answer = dimensions, answer

    def whole(self, choices: Sequence[list[Piece]]) -> pydantic.BaseModel:
        return self._answer([vector_of(stream, self._dimensions, normalize=True) for stream in self._work.streams])

    def chunks(self, index: int, piece: Piece) -> Iterable[pydantic.BaseModel]:
        return ()

    def closing(self) -> Iterable[pydantic.BaseModel]:
        return ()

    def event(self, chunk: pydantic.BaseModel) -> bytes:
        raise NotImplementedError

    def failure(self, refusal: ApiError) -> bytes:
        raise NotImplementedError


def numbers(vector: NDArray[np.float32]) -> list[float]:
    """In the fewest digits that give the same float32."""
    return [float(str(value)) for value in vector]


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
