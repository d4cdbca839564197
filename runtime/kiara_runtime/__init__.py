"""Run Kiara bundles with numpy, ONNX Runtime, tiktoken and click, without PyTorch.

import kiara_runtime

model = kiara_runtime.load("bundle")
print(model.generate("def main(", max_tokens=64).text)
for piece in model.stream("import ", temperature=0.8, seed=1):
    print(piece.text, end="", flush=True)
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Recent ONNX Runtime builds send telemetry unless this is set before their first import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    from kiara_runtime.aio import AsyncModel
    from kiara_runtime.bundle.manifest import Bundle
    from kiara_runtime.engine.sequence import Piece
    from kiara_runtime.errors import BusyError, UserError
    from kiara_runtime.model import Model, load
    from kiara_runtime.sampling.params import SamplingParams
    from kiara_runtime.sampling.sampler import TokenLogprob
    from kiara_runtime.stream import Generation, Score, Stream
    from kiara_runtime.tokens.tokenizer import Tokenizer

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
    "AsyncModel": "aio",
    "Bundle": "bundle.manifest",
    "BusyError": "errors",
    "Generation": "stream",
    "Model": "model",
    "Piece": "engine.sequence",
    "SamplingParams": "sampling.params",
    "Score": "stream",
    "Stream": "stream",
    "TokenLogprob": "sampling.sampler",
    "Tokenizer": "tokens.tokenizer",
    "UserError": "errors",
    "load": "model",
}


def __getattr__(name: str) -> Any:
    """Import the module of a public name on first use, so that `--help` is fast."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
