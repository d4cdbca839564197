"""Embeddings of texts from a bundle that was exported with `--embeddings`."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.engine import ModelFacts, Pool, Pooling, Runner, Sequence
from kiara_runtime.errors import UserError
from kiara_runtime.sampling import SamplingParams, check_integer
from kiara_runtime.stream import Stream

AT_ONCE = 2  # texts in the engine: one is computed, the next is ready; more would only fill the queue


def check_embedding(runner: Runner, pooling: Any, dimensions: Any) -> None:
    """Raise UserError if the model has no hidden states, or an option is invalid."""
    if runner.hidden_size is None:
        raise UserError("embeddings", "this bundle has none", "export it again with kiara export --embeddings")
    if pooling not in get_args(Pooling):
        raise UserError("pooling", "is not a way to pool", f"use {' or '.join(get_args(Pooling))}", value=pooling)
    if dimensions is not None:
        check_integer("dimensions", dimensions, 1, runner.hidden_size)


def begin(runner: Runner, facts: ModelFacts, ids: list[int], pooling: Pooling) -> Stream:
    """Queue a prompt; the pool of its sequence has the vector at the end of the stream."""
    sequence = Sequence(ids, SamplingParams(max_tokens=0, seed=0), facts, pool=Pool(pooling))
    runner.submit(sequence)
    return Stream(runner, sequence, 0)


def vector_of(stream: Stream, dimensions: int | None, normalize: bool) -> NDArray[np.float32]:
    """The embedding (D,) at the end of a stream of `begin`.

    dimensions: keep that many of the first entries. normalize: to a Euclidean length of 1.
    """
    for _ in stream:
        pass
    assert stream.sequence.pool is not None
    vector = stream.sequence.pool.vector[:dimensions]
    length = float(np.linalg.norm(vector)) if normalize else 1.0
    return (vector / (length or 1.0)).astype(np.float32)
