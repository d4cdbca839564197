"""Verify the float32 graph against PyTorch along every path.

Logits must be within tolerance and the greedy choice the same at every position: in one prefill, in single steps, in
chunks, in a padded batch and at the end of the context. The error for a wrong graph names the first layer whose KV
cache differs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kiara_export.proof.reference import Reference
from kiara_runtime.engine import Session
from kiara_runtime.errors import UserError
from kiara_runtime.verify import (
    CHUNK,
    Cached,
    Logits,
    at_the_end,
    cached,
    in_batch,
    in_chunks,
    prompt_ends,
    prompts_alone,
)

# Relative to the largest logit. The order of summation changes a float32 sum by an error that grows with the square
# root of its length (Higham, Accuracy and Stability of Numerical Algorithms, 2002, chapter 4): over USUAL positions a
# tenth of this was measured, at the end of a context of 8,192 tokens 1.3 times this.
TOLERANCE, USUAL = 1e-4, 512
# At the end of the context, some positions amplify earlier rounding errors ten times as much as others. PyTorch's own
# difference from float64 measures how much; single steps, which sum in another order, were measured at nine times that.
# ROUNDINGS times that difference is allowed, at most MOST of the largest logit; a wrong key changes it by a tenth.
ROUNDINGS, MOST = 32, 2e-3
ENDS = ("end of the context", "single steps to the end of the context")


@dataclass(frozen=True)
class Agreement:
    """Agreement of a float32 path with PyTorch. max_difference: largest |logit difference|; scale: largest |logit|."""

    path: str
    max_difference: float
    scale: float
    tokens: int


def verify_float32(session: Session, reference: Reference) -> list[Agreement]:
    """Compare every path of the graph with PyTorch; raises UserError on the first that differs."""
    agreements: dict[str, Agreement] = {}
    for path, expected, found in _paths(session, reference):
        agreement = _compare(path, expected, found, session, reference)
        known = agreements.get(path, agreement)
        agreements[path] = Agreement(
            path,
            max(known.max_difference, agreement.max_difference),
            max(known.scale, agreement.scale),
            agreement.tokens + (known.tokens if path in agreements else 0),
        )
    return list(agreements.values())


def _paths(session: Session, reference: Reference) -> Iterator[tuple[str, Logits, Logits]]:
    """Name of a path, with PyTorch's and the graph's logits, (S, V) each."""
    length = reference.windows.shape[1]

    def windows(name: str, chunk: int) -> Iterator[tuple[str, Logits, Logits]]:
        for ids, logits in zip(reference.windows, reference.logits, strict=True):
            yield name, logits, in_chunks(session, ids, chunk)

    # The KV cache of the whole context is the largest allocation: first, before the heap is fragmented.
    for name, chunk in zip(ENDS, (len(reference.end), 1), strict=True):
        yield name, reference.end_logits, at_the_end(session, reference.past, reference.end, chunk)
    yield from windows("prefill", length)
    for ids, logits in zip(reference.windows, reference.logits, strict=True):
        ends = np.array(prompt_ends(ids)) - 1
        yield "last logits of prompts", logits[ends], np.concatenate(prompts_alone(session, ids))
    yield from windows("single steps", 1)
    yield from windows("chunked prefill", CHUNK)
    for expected, found in zip(reference.row_logits, in_batch(session, reference.rows), strict=True):
        yield "right-padded batch", expected, found


def _compare(path: str, expected: Logits, found: Logits, session: Session, reference: Reference) -> Agreement:
    scale = float(np.abs(expected).max())
    difference = float(np.abs(found - expected).max())
    allowed = tolerance(len(expected)) * scale
    if path in ENDS:
        rounding = min(ROUNDINGS * reference.end_rounding, MOST * scale)
        allowed = max(tolerance(session.architecture.context_length) * scale, rounding)
    if not difference <= allowed:  # written so that NaN fails
        raise UserError(
            "verification",
            f"{path} of the float32 graph differs from PyTorch by {difference:.2g} (at most {allowed:.2g} is allowed), "
            f"{_first_difference(session, reference)}",
            "no bundle was written",
        )
    # Greedy choices may differ only between tokens whose logits in PyTorch are equal within the tolerance.
    chosen = np.take_along_axis(expected, found.argmax(-1)[..., None], axis=-1)[..., 0]
    if float((expected.max(-1) - chosen).max()) > 2 * allowed:
        raise UserError(
            "verification", f"{path} of the float32 graph chooses another token than PyTorch", "no bundle was written"
        )
    return Agreement(path, difference, scale, len(expected))


def tolerance(positions: int) -> float:
    """Allowed logit difference, relative to the largest logit, when attention sums over that many positions."""
    return TOLERANCE * math.sqrt(max(1.0, positions / USUAL))


def _first_difference(session: Session, reference: Reference) -> str:
    """Describe where a prefill starts to differ from PyTorch, by the keys and values of each layer."""
    layer = departing_layer(reference.past, cached(session, reference.windows[0]), TOLERANCE)
    if layer is None:
        return "but no layer's KV cache differs in prefill: check masks, positions, the last layer and the LM head"
    return f"first in the keys or values of layer {layer}"


def departing_layer(expected: Cached, found: Cached, tolerance: float) -> int | None:
    """The first layer whose keys or values differ by more than `tolerance` of their largest; None if none does."""
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if not np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max():
            return i // 2
    return None
