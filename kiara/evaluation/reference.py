"""The PyTorch reference: a checkpoint behind the runtime's own sampling and text, for comparison with bundles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kiara.checkpoints import TokenIds
from kiara.model import GPT, KeyValue
from kiara_runtime.engine import Alone
from kiara_runtime.model import Model
from kiara_runtime.tokens import Tokenizer


def reference_model(model: GPT, tokenizer: Tokenizer, ids: TokenIds) -> Model:
    """`generate` and `stream` as a loaded bundle has them, computed by PyTorch, each request by itself."""
    runner = Alone(lambda: _begin(model))
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
