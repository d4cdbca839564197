"""How well a model predicts text: loss, perplexity, next-token accuracy, bits per byte.

Bits per byte is comparable across vocabularies: the text's negative log-likelihood in bits, divided by its UTF-8
bytes. Windows are read in order and do not overlap; the last one may be shorter, so that every token but the first is
predicted once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiara.checkpoints import find_checkpoint, load_model, trained_on
from kiara.console import progress
from kiara.data import (
    GIVEN,
    ChatSplit,
    Dataset,
    Examples,
    Split,
    TokenIds,
    read_documents,
    read_manifest,
    resolve_source,
)
from kiara.model import GPT
from kiara_runtime.errors import UserError
from kiara_runtime.tokens import Tokenizer
from kiara_runtime.verify import Metrics, Scorer, scoring


def window_length(model: GPT) -> int:
    """Tokens per window: the context length, limited so that the logits of a long one fit in memory."""
    return scoring.window_length(model.config.context_length)


def rows_at_once(model: GPT) -> int:
    """Windows of `window_length` tokens per batch, so that the logits of a batch take at most 256 MiB."""
    return max(1, min(16, (1 << 26) // (window_length(model) * model.vocab_size)))


def windows(split: Split, length: int, max_tokens: int | None = None, rows: int = 1) -> Iterator[Tensor]:
    """Batches of the split's windows in order, int64 (at most `rows`, length + 1).

    max_tokens: take only so many tokens, as whole windows spread evenly over the split. Without it, or if the split
    has no whole window, the rest of each shard follows as a batch of its own, shorter than `length` + 1.
    """
    count = split.whole_windows(length)
    taken = count if max_tokens is None else min(count, max(1, max_tokens // length))
    picked = [i * count // taken for i in range(taken)]
    for first in range(0, taken, rows):
        yield torch.from_numpy(np.stack([split.window(i, length) for i in picked[first : first + rows]]))
    if max_tokens is None or not count:
        yield from (torch.from_numpy(rest[None]) for rest in split.rests(length))


def tensors(examples: Examples, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids, targets and segments on a device."""
    segments = None if examples.segments is None else torch.from_numpy(examples.segments).to(device)
    return torch.from_numpy(examples.ids).to(device), torch.from_numpy(examples.targets).to(device), segments


def held_out_examples(split: Split, length: int, max_tokens: int | None, rows: int) -> Iterator[Examples]:
    """The split's examples in order; of conversations the packed ones. max_tokens: see `windows`."""
    if not isinstance(split, ChatSplit):
        for batch in windows(split, length, max_tokens, rows):
            yield Examples(batch[:, :-1].numpy(), batch[:, 1:].numpy())
        return
    count = split.sequences(length)
    taken = count if max_tokens is None else min(count, max(1, max_tokens // length))
    picked = [i * count // taken for i in range(taken)]
    for first in range(0, taken, rows):
        yield split.rows(picked[first : first + rows], length)


Predict = Callable[[Tensor, Tensor | None], Tensor]  # ids (B, S), and segments or None, to logits (B, S, V)


def predicted(
    predict: Predict, examples: Examples, device: torch.device
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """For each row, the logits (N, V) of the targets (N,) that count. Of pairs, only the chosen conversations."""
    ids, _, segments = tensors(examples, device)
    logits = predict(ids, segments).float().cpu().numpy()
    scored = len(logits) // 2 if examples.pairs else len(logits)
    for row, targets in zip(logits[:scored], examples.targets[:scored], strict=True):
        counted = targets >= 0
        yield row[counted], targets[counted]


def held_out_text(checkpoint: Path, tokenizer: Tokenizer, source: str | None, split: str = "val") -> Split:
    """The validation split of a checkpoint's training data, a split of the prepared folder `source`, or other text."""
    if source is None:
        return trained_on(checkpoint, "--text").val
    if read_manifest(Path(source)) is None:
        return _text_of(source, checkpoint, tokenizer)
    dataset = Dataset.open(Path(source))
    if dataset.tokenizer.definition != tokenizer.definition:
        problem = f"was prepared with another tokenizer than that of {checkpoint}"
        raise UserError(source, problem, f"prepare it with --tokenizer {checkpoint}, or name the text itself")
    return dataset.train if split == "train" else dataset.val


def _text_of(source: str, checkpoint: Path, tokenizer: Tokenizer) -> Split:
    start = tokenizer.first_token(TokenIds.read(checkpoint).bos)
    begin, rows, text_bytes = np.array([start], dtype=np.uint32), list[np.ndarray](), 0
    for document in read_documents(resolve_source(source)):
        text = document.read()
        if text.strip() and len(row := _encode(tokenizer, document.name, text)):
            rows += [begin, row]
            text_bytes += len(text.encode())
    if sum(map(len, rows)) < 2:
        raise UserError(source, "holds no text", "name a file or folder with text")
    return Split(GIVEN, [np.concatenate(rows)], text_bytes)


def _encode(tokenizer: Tokenizer, name: str, text: str) -> np.ndarray:
    """Token ids of a document, uint32 (n,); errors carry its name."""
    try:
        return np.array(tokenizer.encode(text), dtype=np.uint32)
    except UserError as error:
        raise error.inside(name) from None


def evaluate_checkpoint(source: Path, text: str | None) -> Metrics:
    """Metrics of a checkpoint, or of a run's best one, on its validation split or on the source `text`."""
    folder = find_checkpoint(source)
    split = held_out_text(folder, Tokenizer.load(folder), text)  # raises before the weights load
    model, tokenizer = load_model(folder)
    metrics = _metrics(model, tokenizer, split)
    if not math.isfinite(metrics.loss):
        raise UserError(folder, f"its loss on this text is {metrics.loss}", "choose another checkpoint")
    return metrics


@torch.inference_mode()
def _metrics(model: GPT, tokenizer: Tokenizer, split: Split) -> Metrics:
    scorer = Scorer(tokenizer)
    with progress("Evaluating", split.targets) as advance:
        for examples in held_out_examples(split, window_length(model), None, rows_at_once(model)):
            for logits, targets in predicted(model.predict, examples, model.cos.device):
                scorer.add(logits, targets)
            advance(examples.targets.size)
    return scorer.metrics(split.text_bytes)
