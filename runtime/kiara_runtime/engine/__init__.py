"""Runs many sequences on one ONNX Runtime session: schedule, run, postprocess.

`session` and its cache handle token ids only; `sequence` does not depend on slots or sessions; `slots` does no file
I/O; `prompt_store` reads and writes outside the step. HTTP is in `server`, text in `tokens`.
"""

from kiara_runtime.engine.engine import QUEUE, SLOTS, Engine
from kiara_runtime.engine.pooling import Pool, Pooling
from kiara_runtime.engine.prompt_store import PromptStore
from kiara_runtime.engine.runner import Runner, SequentialRunner
from kiara_runtime.engine.sequence import FinishReason, ModelFacts, Piece, Sequence
from kiara_runtime.engine.session import (
    CHUNK,
    Device,
    KVCache,
    Session,
    check_int8_cache,
    int8_cache_runs,
    may_use_cuda,
)

__all__ = [
    "CHUNK",
    "QUEUE",
    "SLOTS",
    "Device",
    "Engine",
    "FinishReason",
    "KVCache",
    "ModelFacts",
    "Piece",
    "Pool",
    "Pooling",
    "PromptStore",
    "Runner",
    "Sequence",
    "SequentialRunner",
    "Session",
    "check_int8_cache",
    "int8_cache_runs",
    "may_use_cuda",
]
