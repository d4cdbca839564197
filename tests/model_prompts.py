"""Helpers shared by the model tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from kiara_runtime.engine.runner import SequentialRunner
from kiara_runtime.model import Model
from kiara_runtime.tokens.tokenizer import Tokenizer
from kiara_runtime.tokens.tokenizer_json import END_OF_TEXT

PROMPT = "def main(argv):\n    "


def _scripted(ids: list[int], context_length: int = 64) -> Model:
    """A model that outputs `ids` one after another, with a byte tokenizer."""
    tokenizer = Tokenizer.from_merges([bytes([byte]) for byte in range(256)], {END_OF_TEXT: 256})

    def begin() -> Any:
        said = iter(ids)
        return lambda fed: np.eye(257, dtype=np.float32)[[next(said)]]

    return Model(tokenizer, SequentialRunner(begin), context_length, 257, frozenset({256}), 256)
