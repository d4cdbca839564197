"""What PyTorch says, computed once while the model is in memory; the graphs are judged without it.

Shape letters as in `kiara_runtime.paths`; R held-out windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from kiara.data import Split
from kiara.evaluate import rows_at_once, windows
from kiara.model import GPT
from kiara.ops import KeyValue
from kiara_runtime.paths import END, Cached, Ids, Logits, batch_of, tiled

WINDOWS = 4  # held-out windows that the paths are compared on; one of a model whose logits are large
MAX_LENGTH = 512  # of a window; a longer one would only take longer to say the same


@dataclass(frozen=True)
class Reference:
    """windows: int64 (R, S). logits: of each, (R, S, V). past: keys and values (K, S, E) of the first, 2 L of them.

    rows: the sequences of the padded batch, and what each alone gives. end: the ids of the context's last
    positions behind the tiled `past`, and their logits.
    """

    windows: Ids
    logits: Logits
    past: Cached
    rows: list[Ids]
    row_logits: list[Logits]
    end: Ids
    end_logits: Logits


def window_length(model: GPT) -> int:
    return min(model.config.context_length, MAX_LENGTH)


@torch.inference_mode()
def reference_of(model: GPT, split: Split) -> Reference:
    """Run the model eagerly over a little held-out text, along every path that a graph must reproduce."""
    length = window_length(model)
    count = WINDOWS if rows_at_once(model) >= WINDOWS else 1
    batch = next(windows(split, length, count * length, count))[:, :-1]
    logits, present = model(batch)
    past = [part[0].numpy().copy() for pair in present for part in pair]
    del present
    first = batch[0].numpy()
    rows = batch_of(first)
    end = first[:END]
    return Reference(
        windows=batch.numpy(),
        logits=logits.numpy(),
        past=past,
        rows=rows,
        row_logits=[logits[0, : len(row)].numpy() for row in rows],
        end=end,
        end_logits=model(torch.from_numpy(end)[None], _Tiled(past, model.config.context_length - END))[0][0].numpy(),
    )


class _Tiled:
    """A cache filled up to `length`, one layer in memory at a time."""

    def __init__(self, past: Cached, length: int) -> None:
        self._past, self._length = past, length

    def __len__(self) -> int:
        return len(self._past) // 2

    def __getitem__(self, layer: int) -> KeyValue:
        keys, values = (torch.from_numpy(tiled(p, self._length))[None] for p in self._past[2 * layer : 2 * layer + 2])
        return keys, values

    def __iter__(self) -> Iterator[KeyValue]:
        return (self[layer] for layer in range(len(self)))
