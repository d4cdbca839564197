"""The PyTorch reference: a checkpoint behind the runtime's own sampling and text, for comparison with bundles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kiara.checkpoint import TokenIds
from kiara.model import GPT
from kiara.ops import KeyValue
from kiara_runtime.generate import Advance, Model
from kiara_runtime.tokenizer import Tokenizer


def reference_model(model: GPT, tokenizer: Tokenizer, ids: TokenIds) -> Model:
    """`generate` and `stream` as a loaded bundle has them, computed by PyTorch."""
    return Model(tokenizer, lambda: _begin(model), model.config.context_length, ids.eos, ids.bos)


def _begin(model: GPT) -> Advance:
    past: list[KeyValue] | None = None
    device = model.embed_tokens.weight.device

    @torch.no_grad()
    def advance(ids: Sequence[int]) -> NDArray[np.float32]:
        nonlocal past
        logits, past = model(torch.tensor([ids], device=device), past)
        return logits[0, -1].float().cpu().numpy()

    return advance
