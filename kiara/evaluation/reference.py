"""The PyTorch reference: a checkpoint with the runtime's sampling and text handling, to compare bundles with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kiara.data import TokenIds
from kiara.model import GPT, KeyValue
from kiara_runtime.engine import SequentialRunner
from kiara_runtime.model import Model
from kiara_runtime.tokens import Tokenizer


def reference_model(model: GPT, tokenizer: Tokenizer, ids: TokenIds) -> Model:
    """A model with the interface of a loaded bundle, computed by PyTorch, each sequence separately."""
    runner = SequentialRunner(lambda: _begin(model))
    return Model(tokenizer, runner, model.config.context_length, model.vocab_size, ids.eos, ids.bos)


def _begin(model: GPT) -> Callable[[Sequence[int]], NDArray[np.float32]]:
    """A function that appends token ids (N,) to a fresh sequence and returns the logits (N, V) after each."""
    past: list[KeyValue] | None = None
    device = model.embed_tokens.weight.device

    @torch.no_grad()
    def advance(ids: Sequence[int]) -> NDArray[np.float32]:
        nonlocal past
        logits, past = model(torch.tensor([ids], device=device), past)
        return logits[0].float().cpu().numpy()

    return advance
