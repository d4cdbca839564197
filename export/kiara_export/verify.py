"""The verifier: what a graph must show before a bundle is written.

The float32 graph must say what PyTorch says: logits within tolerance and the same greedy choice at every
position, in one prefill, step by step and in chunks. A quantised graph cannot be compared bit by bit (its
activations are rounded to 8 bits, which amplifies the last bit that differs between a step and a chunk),
so it is judged by what rounding costs: bits per byte and agreement of the likeliest token, on held-out text.
The graphs run in the runtime's own session, so what is proven is what will run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiara.data import Split
from kiara.evaluate import Metrics, evaluate, rows_at_once, windows
from kiara.model import GPT
from kiara_runtime.errors import UserError
from kiara_runtime.session import Session
from kiara_runtime.tokenizer import Tokenizer

TOLERANCE = 1e-4  # of the largest logit: float32 sums in another order stay a hundred times below
MAX_BITS_PER_BYTE_LOSS = 0.003
MIN_TOP1_AGREEMENT = 0.9
MIN_PATH_AGREEMENT = 0.95
WINDOWS = 4  # held-out windows that the float32 paths are compared on
CHUNK = 48  # no divisor of any context length, so that the last chunk is a short one
MAX_LENGTH = 512  # of a window; a long context would only take longer to say the same
MAX_TOKENS, MIN_TOKENS = 1 << 18, 1 << 13  # of held-out text that the variants are judged on
MAX_WORK = 2e12  # tokens times parameters: half a minute a variant on two cores


@dataclass(frozen=True)
class Agreement:
    """Of a float32 path with PyTorch. max_difference: largest |logit difference|; scale: largest |logit|."""

    path: str
    max_difference: float
    scale: float
    tokens: int


def verify_float32(session: Session, model: GPT, split: Split) -> list[Agreement]:
    """Compare every path of the graph with PyTorch; raises UserError on the first that departs."""
    length = min(model.config.context_length, MAX_LENGTH)
    batch = _few_windows(split, length, model)
    with torch.inference_mode():
        expected = model(batch)[0].numpy()
    paths: dict[str, int] = {"prefill": length, "single steps": 1, "chunked prefill": CHUNK}
    return [_compare(name, expected, _by_chunks(session, batch.numpy(), chunk)) for name, chunk in paths.items()]


def _few_windows(split: Split, length: int, model: GPT) -> Tensor:
    """Windows for paths that take single steps, int64 (rows, length): one of a large model, else WINDOWS."""
    rows = WINDOWS if rows_at_once(model) >= WINDOWS else 1
    return next(windows(split, length, rows * length, rows))[:, :-1]


def _by_chunks(session: Session, ids: NDArray[np.int64], chunk: int) -> NDArray[np.float32]:
    """Logits (rows, S, V) with each row fed `chunk` tokens at a time."""
    return np.stack([np.concatenate(list(_chunks(session, row, chunk))) for row in ids])


def _chunks(session: Session, row: NDArray[np.int64], chunk: int) -> Iterator[NDArray[np.float32]]:
    decoder = session.decoder()
    for start in range(0, len(row), chunk):
        yield decoder.append(row[start : start + chunk])


def _compare(path: str, expected: NDArray[np.float32], found: NDArray[np.float32]) -> Agreement:
    scale = float(np.abs(expected).max())
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE * scale:  # also where it is not a number
        raise UserError(
            f"verification: {path} of the float32 graph differs from PyTorch by {difference:.2g} where "
            f"{TOLERANCE * scale:.2g} is allowed; no bundle was written"
        )
    # Choices may differ only between tokens that PyTorch itself cannot tell apart within the tolerance.
    chosen = np.take_along_axis(expected, found.argmax(-1)[..., None], axis=-1)[..., 0]
    behind = float((expected.max(-1) - chosen).max())
    if behind > 2 * TOLERANCE * scale:
        raise UserError(f"verification: {path} chooses another token than PyTorch; no bundle was written")
    return Agreement(path, difference, scale, expected.shape[0] * expected.shape[1])


@dataclass(frozen=True)
class Quality:
    """Of a variant on held-out text. top1_agreement: part of the positions whose likeliest token is fp32's.

    path_agreement: the same of single steps and of chunks with the variant's own prefill, the lower of the two.
    """

    metrics: Metrics
    bits_per_byte_loss: float
    top1_agreement: float
    path_agreement: float


class Judge:
    """Measures float32 on held-out text once, and each variant against it."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, split: Split) -> None:
        self._tokenizer, self._split, self._length = tokenizer, split, min(model.config.context_length, MAX_LENGTH)
        self._rows = rows_at_once(model)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        affordable = max(MIN_TOKENS, int(MAX_WORK / parameters))
        self.tokens = min(MAX_TOKENS, affordable, split.windows(self._length) * self._length)
        self._few = _few_windows(split, self._length, model).numpy()
        self._choices: list[Tensor] = []

    def measure_float32(self, session: Session, advance: Callable[[int], None]) -> Metrics:
        def predict(ids: Tensor) -> Tensor:
            logits = _prefill(session, ids)
            self._choices.append(logits.argmax(-1))
            return logits

        return self._evaluate(predict, advance)

    def measure(self, name: str, session: Session, float32: Metrics, advance: Callable[[int], None]) -> Quality:
        """Raises UserError where the variant loses more than the thresholds allow."""
        choices = iter(self._choices)
        agreeing = 0

        def predict(ids: Tensor) -> Tensor:
            nonlocal agreeing
            logits = _prefill(session, ids)
            agreeing += int((logits.argmax(-1) == next(choices)).sum())
            return logits

        metrics = self._evaluate(predict, advance)
        loss = metrics.bits_per_byte / float32.bits_per_byte - 1
        quality = Quality(metrics, loss, agreeing / metrics.tokens, self._path_agreement(name, session))
        if not loss <= MAX_BITS_PER_BYTE_LOSS or quality.top1_agreement < MIN_TOP1_AGREEMENT:
            raise UserError(
                f"verification: {name} loses {loss:.2%} bits per byte (allowed {MAX_BITS_PER_BYTE_LOSS:.1%}) and "
                f"agrees with fp32 on {quality.top1_agreement:.1%} of the tokens (needed {MIN_TOP1_AGREEMENT:.0%}); "
                "no bundle was written"
            )
        return quality

    def _path_agreement(self, name: str, session: Session) -> float:
        """A prefill alone would not show a cache that forgets, nor the kernels of a single step."""
        ids = self._few
        prefill = _by_chunks(session, ids, self._length).argmax(-1)
        agreement = min(float((_by_chunks(session, ids, chunk).argmax(-1) == prefill).mean()) for chunk in (1, CHUNK))
        if agreement < MIN_PATH_AGREEMENT:
            raise UserError(
                f"verification: single steps or chunks of {name} agree with its prefill on {agreement:.1%} of the "
                f"tokens (needed {MIN_PATH_AGREEMENT:.0%}); no bundle was written"
            )
        return agreement

    def _evaluate(self, predict: Callable[[Tensor], Tensor], advance: Callable[[int], None]) -> Metrics:
        return evaluate(predict, self._tokenizer, windows(self._split, self._length, self.tokens, self._rows), advance)


def _prefill(session: Session, ids: Tensor) -> Tensor:
    return torch.from_numpy(_by_chunks(session, ids.numpy(), ids.shape[1]))
