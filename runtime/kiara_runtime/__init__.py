"""Run Kiara bundles with numpy, ONNX Runtime, tiktoken and click, without PyTorch.

import kiara_runtime

model = kiara_runtime.load("bundle")
print(model.generate("def main(", max_tokens=64).text)
for piece in model.stream("import ", temperature=0.8, seed=1):
    print(piece.text, end="", flush=True)
"""

import os
from typing import TYPE_CHECKING

from kiara_runtime.lazy import lazy_names

# Recent ONNX Runtime builds send telemetry unless this is set before their first import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    from kiara_runtime.aio import AsyncModel
    from kiara_runtime.bundle import Bundle
    from kiara_runtime.engine import Piece
    from kiara_runtime.errors import BusyError, UserError
    from kiara_runtime.loading import load
    from kiara_runtime.model import Model
    from kiara_runtime.sampling import SamplingParams, TokenLogprob
    from kiara_runtime.stream import Generation, Score, Stream
    from kiara_runtime.tokens import Tokenizer

__all__ = [
    "AsyncModel",
    "Bundle",
    "BusyError",
    "Generation",
    "Model",
    "Piece",
    "SamplingParams",
    "Score",
    "Stream",
    "TokenLogprob",
    "Tokenizer",
    "UserError",
    "load",
]
__version__ = "0.1.0"

_HOMES = {
    "AsyncModel": "kiara_runtime.aio",
    "Bundle": "kiara_runtime.bundle",
    "BusyError": "kiara_runtime.errors",
    "Generation": "kiara_runtime.stream",
    "Model": "kiara_runtime.model",
    "Piece": "kiara_runtime.engine",
    "SamplingParams": "kiara_runtime.sampling",
    "Score": "kiara_runtime.stream",
    "Stream": "kiara_runtime.stream",
    "TokenLogprob": "kiara_runtime.sampling",
    "Tokenizer": "kiara_runtime.tokens",
    "UserError": "kiara_runtime.errors",
    "load": "kiara_runtime.loading",
}
__getattr__ = lazy_names(__name__, _HOMES)
