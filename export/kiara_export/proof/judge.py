"""Quality of each variant against float32, token by token, on held-out text.

A quantised graph cannot be compared bit by bit: its activations are rounded to 8 bits, which amplifies last-bit
differences between single steps and chunks. So it is judged by bits per byte, by the Kullback-Leibler divergence of its
next-token distribution from float32's, and by how often both agree on the likeliest token. Bitwise equality is tested
only where it is promised: a sequence alone and in a batch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kiara.data import Split
from kiara.evaluation import Metrics, rows_at_once, window_length, windows
from kiara.model import GPT
from kiara_export.proof.reference import Reference
from kiara_export.proof.verify import departing_layer
from kiara_runtime.bundle import Architecture, Limits, Variant
from kiara_runtime.engine import Session
from kiara_runtime.tokens import Tokenizer
from kiara_runtime.verify import PathAgreement, Scorer, cached

MAX_TOKENS, MIN_TOKENS = 1 << 16, 1 << 13  # of held-out text that variants are judged on
MAX_WORK = 1e12  # tokens times parameters: a dozen seconds a variant on two cores
PASS = 128  # tokens per pass: the logits of a whole window would take much memory
CELLS = 1 << 19  # logits compared at once, few enough to stay in the CPU cache
MANY = {"session.intra_op.allow_spinning": "0"}  # several sessions: spinning threads would take each other's cores
QUANTILES = (0.5, 0.9, 0.99, 1.0)
LEAST_BITS = 0.5  # per byte; on more predictable text, such as one repeated line, a tiny loss is a large fraction
RUN, LEAST_RUNS = 64, 16  # tokens of a run for the standard error, and the minimum number of runs


@dataclass(frozen=True)
class Quality:
    """Quality of a variant on held-out text.

    bits_per_byte_loss: relative to float32; bits_per_byte_loss_error: its standard error on this text. kl: mean
    divergence of the next-token distribution from float32's, in nats a token; kl_quantiles: at QUANTILES.
    top1_agreement: fraction of positions where the likeliest token is the same as float32's. paths: the same fractions
    for each path against the variant's own prefill; path_agreement: the lower of single steps and chunks.
    """

    metrics: Metrics
    bits_per_byte_loss: float
    bits_per_byte_loss_error: float
    kl: float
    kl_quantiles: tuple[float, ...]
    top1_agreement: float
    path_agreement: float
    paths: PathAgreement


class Judge:
    """Compares any number of variants with float32 in one pass over the text, a window at a time.

    Reads the same windows as `kiara evaluate` and `kiara-run evaluate`, but only part of a long text.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, split: Split) -> None:
        self._tokenizer, self._split = tokenizer, split
        self._length, self._rows = window_length(model), rows_at_once(model)
        affordable = max(MIN_TOKENS, int(MAX_WORK / sum(parameter.numel() for parameter in model.parameters())))
        affordable = min(MAX_TOKENS, affordable)
        self._part = affordable if affordable < split.targets else None
        self._text_bytes = split.text_bytes if self._part is None else None
        self._float32: Metrics | None = None
        self.tokens = min(affordable, split.targets)

    def measure(
        self,
        float32: Session,
        variants: Mapping[Variant, Session],
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> tuple[Metrics, dict[Variant, Comparison]]:
        """Metrics of float32, and the comparison of each variant with it."""
        scorer = Scorer(self._tokenizer)
        seen = {name: Comparison(self._tokenizer, self._text_bytes) for name in variants}
        for batch in windows(self._split, self._length, self._part, self._rows):
            for window in batch:
                base, decoders = float32.decoder(), {name: session.decoder() for name, session in variants.items()}
                for ids, targets in zip(window[:-1].split(PASS), window[1:].split(PASS), strict=True):
                    expected = base.append(ids.numpy())
                    scorer.add(expected, targets.numpy())
                    for name, decoder in decoders.items():
                        seen[name].add(decoder.append(ids.numpy()), expected, targets.numpy())
                    advance(len(ids))
        return scorer.metrics(self._text_bytes), seen

    def loss_of_files(self, shape: Architecture, float32: Path, variant: Path) -> float:
        """Relative loss of bits per byte of a variant's graph; float32 is measured only once."""
        if self._float32 is None:
            self._float32, _ = self.measure(Session(float32, shape, settings=MANY), {})
        loss = self.measure(Session(variant, shape, settings=MANY), {})[0].bits_per_byte
        return loss / self._float32.bits_per_byte - 1


class Comparison:
    """Accumulates the differences between a variant and float32."""

    def __init__(self, tokenizer: Tokenizer, text_bytes: int | None = None) -> None:
        self._scorer, self._text_bytes, self._agreeing = Scorer(tokenizer), text_bytes, 0
        self._divergences, self._losses = list[float](), list[float]()  # of each token, in nats

    def add(self, found: NDArray[np.float32], expected: NDArray[np.float32], targets: NDArray[np.int64]) -> None:
        """Add logits (S, V) of the variant (`found`) and of float32 (`expected`), and the true next tokens (S,)."""
        self._scorer.add(found, targets)
        self._agreeing += int((found.argmax(-1) == expected.argmax(-1)).sum())
        rows = max(1, CELLS // found.shape[-1])
        tensors = (torch.from_numpy(array).split(rows) for array in (found, expected, targets))
        parts = zip(*tensors, strict=True)
        for ours, theirs, target in parts:
            norm = ours.logsumexp(-1) - theirs.logsumexp(-1)
            self._losses += (norm - (ours - theirs).gather(-1, target[:, None])[:, 0]).tolist()
            inner = torch.linalg.vecdot(theirs.softmax(-1), theirs - ours)
            self._divergences += (inner + norm).tolist()

    def quality(self, float32: Metrics, paths: PathAgreement) -> Quality:
        metrics, divergences = self._scorer.metrics(self._text_bytes), torch.tensor(self._divergences).clamp(min=0)
        return Quality(
            metrics=metrics,
            bits_per_byte_loss=metrics.bits_per_byte / float32.bits_per_byte - 1,
            bits_per_byte_loss_error=standard_error(self._losses) / (float32.loss * float32.tokens),
            kl=divergences.mean().item(),
            kl_quantiles=tuple(torch.quantile(divergences, torch.tensor(QUANTILES)).tolist()),
            top1_agreement=self._agreeing / metrics.tokens,
            path_agreement=min(paths.single_steps, paths.chunked_prefill),
            paths=paths,
        )


@dataclass(frozen=True)
class Shortfall:
    """A limit that a variant fails. field: of Limits. problem: the message for the user."""

    field: str
    problem: str


def shortfall(quality: Quality, limits: Limits) -> Shortfall | None:
    """The first limit that a variant fails by more than chance on this much text explains; None if it fails none."""
    loss, error = quality.bits_per_byte_loss, quality.bits_per_byte_loss_error
    allowed = limits.bits_per_byte_loss * max(1.0, LEAST_BITS / max(quality.metrics.bits_per_byte, 1e-9))
    if not loss - 2 * error <= allowed:  # written so that NaN fails
        problem = f"loses {loss:.2%} ± {error:.2%} of its bits per byte; at most {allowed:.2%} is allowed"
        return Shortfall("bits_per_byte_loss", problem)
    paths = quality.paths
    for field, part, positions in (
        ("top1_agreement", quality.top1_agreement, quality.metrics.tokens),
        ("path_agreement", quality.path_agreement, paths.positions),
        ("other_paths", paths.lowest(), paths.prompts),
        ("end_of_context", paths.end_of_context, paths.prompts),
    ):
        if not part >= _with_margin(getattr(limits, field), positions):
            return Shortfall(field, f"has {field} {part:.2%}; at least {getattr(limits, field):.2%} is required")
    return None


def _with_margin(limit: float, positions: int) -> float:
    """The limit minus two standard errors, so that a variant exactly at the limit rarely fails by chance."""
    return limit - 2 * math.sqrt(limit * (1 - limit) / max(1, positions))


def standard_error(losses: list[float]) -> float:
    """Standard error of the sum of the tokens' losses. Neighbours correlate, so runs of tokens are the samples."""
    size = max(1, min(RUN, len(losses) // LEAST_RUNS))
    sums = [math.fsum(losses[i : i + size]) for i in range(0, len(losses) - size + 1, size)]
    if len(sums) < 2:
        return 0.0
    return statistics.stdev(sums) * math.sqrt(len(sums)) * len(losses) / (len(sums) * size)


def worst_layer(float32: Session, session: Session, reference: Reference) -> str:
    """Describe where a variant diverges: the first layer whose KV cache differs from float32's by half the maximum."""
    ids = reference.windows[0]
    expected, found = cached(float32, ids), cached(session, ids)
    errors = [float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(expected, found, strict=True)]
    layer = departing_layer(expected, found, max(errors) / 2)
    return f"keys and values differ most from layer {layer} on, by up to {max(errors):.1%}"
