"""PyTorch's outputs, computed once while the model is in memory; judging the graphs does not need the model.

Shape letters as in `kiara_runtime.verify.agreement`; R held-out windows.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kiara.data import Split
from kiara.evaluation import rows_at_once, windows
from kiara.model import GPT, KeyValue
from kiara_runtime.verify import END, Cached, Ids, Logits, batch_of

WINDOWS = 4  # held-out windows that the paths are compared on
MAX_LENGTH = 512  # tokens of a window; longer ones take more time and show nothing new
LARGE_LENGTH = 128  # tokens of the one window that PyTorch reads if the model's logits are large


@dataclass(frozen=True)
class Reference:
    """PyTorch's outputs along the paths that a graph must reproduce.

    texts: int64 (R, T), to compare a graph's paths with each other; windows: their first S tokens, int64 (R, S), which
    PyTorch has read; logits: of these, (R, S, V). past: keys and values (K, S, E) of the first window, 2 L arrays.

    rows: the sequences of the padded batch; row_logits: of each one alone. end: token ids at the last positions of the
    context, after a KV cache filled with `past` repeatedly; end_logits: theirs; end_rounding: largest difference of
    these from the same in float64.
    """

    texts: Ids
    windows: Ids
    logits: Logits
    past: Cached
    rows: list[Ids]
    row_logits: list[Logits]
    end: Ids
    end_logits: Logits
    end_rounding: float


@torch.inference_mode()
def reference_of(model: GPT, split: Split) -> Reference:
    """Run the model in PyTorch on a little held-out text, along every path that a graph must reproduce."""
    large = rows_at_once(model) < WINDOWS
    length = min(model.config.context_length, MAX_LENGTH)
    count = 1 if large else WINDOWS
    texts = next(windows(split, length, count * length, count))[:, :-1]
    batch = texts[:, :LARGE_LENGTH] if large else texts
    logits, present = model(batch)
    past = [part[0].numpy().copy() for pair in present for part in pair]
    del present
    first = batch[0].numpy()
    rows = batch_of(first)
    end = first[:END]
    end_logits = _logits_behind(model, past, torch.from_numpy(end)[None], torch.float32)
    exact = _logits_behind(model, past, torch.from_numpy(end)[None], torch.float64)
    return Reference(
        texts=texts.numpy(),
        windows=batch.numpy(),
        logits=logits.numpy(),
        past=past,
        rows=rows,
        row_logits=[logits[0, : len(row)].numpy() for row in rows],
        end=end,
        end_logits=end_logits,
        end_rounding=float(np.abs(end_logits - exact).max()),
    )


def _logits_behind(model: GPT, past: Cached, ids: Tensor, dtype: torch.dtype) -> Logits:
    """Logits (S, V) at the end of the context, as GPT.forward, but with one layer's KV cache in memory at a time.

    dtype: of the layers. The embedding does no rounding and the head little, so both stay in float32.
    """
    positions = np.arange(model.config.context_length - ids.shape[1]) % past[0].shape[1]

    def cache(layer: int) -> KeyValue:
        parts = past[2 * layer : 2 * layer + 2]
        keys, values = (torch.from_numpy(part[:, positions])[None].to(dtype) for part in parts)
        return keys, values

    (x, ropes), delta = model.embed(ids, [cache(0)]), None
    x = x.to(dtype)
    full, sliding = (None if rope is None else (rope[0].to(dtype), rope[1].to(dtype)) for rope in ropes)
    for i, layer in enumerate(model.layers):
        converted = layer if dtype == torch.float32 else copy.deepcopy(layer).to(dtype)
        x, delta, _ = converted(x, delta, (full, sliding), cache(i), None)
    return model.logits(model.norm(x.float(), None if delta is None else delta.float())[0])[0].numpy()
