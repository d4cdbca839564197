"""Many sequences on one ONNX Runtime session: schedule, run, postprocess.

session and its cache know token ids only; sequence knows neither slots nor sessions; slots know no files; the prompt
store reads and writes outside the step. HTTP and text formats are not here (`server`, `tokens`).
"""

from kiara_runtime.engine.engine import QUEUE, SLOTS, Engine
from kiara_runtime.engine.prompt_store import PromptStore
from kiara_runtime.engine.runner import Alone, Runner
from kiara_runtime.engine.sequence import Facts, FinishReason, Piece, Sequence
from kiara_runtime.engine.session import CHUNK, Device, Session

__all__ = [
    "CHUNK",
    "QUEUE",
    "SLOTS",
    "Alone",
    "Device",
    "Engine",
    "Facts",
    "FinishReason",
    "Piece",
    "PromptStore",
    "Runner",
    "Sequence",
    "Session",
]
