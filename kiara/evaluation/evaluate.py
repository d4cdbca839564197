"""How well a model predicts text: loss, perplexity, next-token accuracy, bits per byte.

Bits per byte compares models of different vocabularies: the text's total information under the model,
divided by its UTF-8 bytes. Windows are read in order and do not overlap; the last one of a text may be shorter,
so that every token but the first is predicted once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kiara.checkpoints import TokenIds, find_checkpoint, load_model, trained_on
from kiara.console import progress
from kiara.data import GIVEN, Split, read_documents, resolve_source
from kiara.model import GPT
from kiara_runtime.errors import UserError
from kiara_runtime.tokens import Tokenizer
from kiara_runtime.verify import Metrics, Scorer, first_token, scoring


def window_length(model: GPT) -> int:
    """Tokens a window: the whole context, or what a long one's logits still leave room for."""
    return scoring.window_length(model.config.context_length)


def rows_at_once(model: GPT) -> int:
    """Windows a batch, of `window_length` tokens each, so that the logits of one batch stay below 256 MiB."""
    return max(1, min(16, (1 << 26) // (window_length(model) * model.vocab_size)))


def windows(split: Split, length: int, max_tokens: int | None = None, rows: int = 1) -> Iterator[Tensor]:
    """The split in order as batches of windows, int64 (rows at most, length + 1).

    max_tokens: take only as many whole windows, spread evenly over the split, so that all its documents have a say.
    Without it all of the text is read, and of a text shorter than a window all of it, too: a last window may then be
    a batch of its own, shorter than `length` + 1.
    """
    count = split.whole_windows(length)
    taken = count if max_tokens is None else min(count, max(1, max_tokens // length))
    picked = [i * count // taken for i in range(taken)]
    for first in range(0, taken, rows):
        yield torch.from_numpy(np.stack([split.window(i, length) for i in picked[first : first + rows]]))
    if max_tokens is None or not count:
        yield from (torch.from_numpy(rest[None]) for rest in split.rests(length))


@torch.inference_mode()
def evaluate(
    predict: Callable[[Tensor], Tensor],
    tokenizer: Tokenizer,
    batches: Iterator[Tensor],
    advance: Callable[[int], None] = lambda tokens: None,
    text_bytes: int | None = None,
) -> Metrics:
    """predict: ids (B, S) to logits (B, S, V). advance: told of the tokens of each finished batch."""
    scorer = Scorer(tokenizer)
    for batch in batches:
        logits, targets = predict(batch[:, :-1]).float().cpu().numpy(), batch[:, 1:].numpy()
        for row, following in zip(logits, targets, strict=True):
            scorer.add(row, following)
        advance(targets.size)
    return scorer.metrics(text_bytes)


def held_out_text(checkpoint: Path, tokenizer: Tokenizer, source: str | None) -> Split:
    """The validation split that a checkpoint was trained against, or the text of `source`."""
    if source is not None:
        start = first_token(tokenizer, TokenIds.read(checkpoint).bos)
        begin, rows, text_bytes = np.array([start], dtype=np.uint32), list[np.ndarray](), 0
        for document in read_documents(resolve_source(source)):
            text = document.read()
            if text.strip() and len(row := _encode(tokenizer, document.name, text)):
                rows += [begin, row]
                text_bytes += len(text.encode())
        if sum(map(len, rows)) < 2:
            raise UserError(source, "no text at all", "name a file or folder with some")
        return Split(GIVEN, [np.concatenate(rows)], text_bytes)
    return trained_on(checkpoint, "--text").val


def _encode(tokenizer: Tokenizer, name: str, text: str) -> np.ndarray:
    """Token ids of the document of this name, uint32 (n,)."""
    try:
        return np.array(tokenizer.encode(text), dtype=np.uint32)
    except UserError as error:
        raise error.inside(name) from None


def evaluate_checkpoint(source: Path, text: str | None) -> Metrics:
    """Metrics of a checkpoint, or of a run's best one, on its validation split or on the source `text`."""
    folder = find_checkpoint(source)
    split = held_out_text(folder, Tokenizer.load(folder), text)  # what is wrong with it is told before the weights load
    model, tokenizer = load_model(folder)
    length = window_length(model)
    with progress("Evaluating", split.targets) as advance:
        batches = windows(split, length, rows=rows_at_once(model))
        metrics = evaluate(lambda ids: model(ids)[0], tokenizer, batches, advance, split.text_bytes)
    if not math.isfinite(metrics.loss):
        raise UserError(folder, f"its loss on this text is {metrics.loss}", "name another checkpoint")
    return metrics
