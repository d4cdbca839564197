"""Oracles shared by the sampling tests."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

Array = NDArray[Any]


@st.composite
def _logits(draw: st.DrawFn) -> Array:
    """Logits of one token up to several blocks, flat to steep, with many ties or none, some of them -inf."""
    size = draw(st.integers(1, 12) | st.integers(13, 3000))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    values = rng.standard_normal(size) * draw(st.sampled_from([0.0, 0.01, 1.0, 3.0, 30.0]))
    step = draw(st.sampled_from([0.0, 0.25, 1.0]))
    values = np.round(values / step) * step if step else values
    values[rng.random(size) < draw(st.sampled_from([0.0, 0.0, 0.5]))] = -np.inf
    values[rng.integers(size)] = 0.5
    return values.astype(np.float32)


def _shortest_prefix(ranked: list[int], probabilities: dict[int, float], part: float) -> tuple[list[int], float]:
    """The shortest prefix of `ranked` whose probability reaches `part`, and how close `part` is to another length."""
    sums = np.cumsum([probabilities[i] for i in ranked])
    return ranked[: int((sums < part).sum()) + 1], float(np.abs(sums - part).min())


def _oracle(
    logits: Array, temperature: float, top_k: int = 0, typical_p: float = 1.0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[dict[int, float], float]:
    """Ids and probabilities by the papers' definitions, with full sorts; and the margin of the closest decision."""
    margin = math.inf
    kept = [i for i in range(len(logits)) if logits[i] > -math.inf]
    if top_k:
        kept = sorted(kept, key=lambda i: (-logits[i], i))[:top_k]
    tempered = {i: (float(logits[i]) - float(logits.max())) / temperature for i in kept}

    def normalised() -> dict[int, float]:
        top = max(tempered[i] for i in kept)
        weights = {i: math.exp(tempered[i] - top) for i in kept}
        total = math.fsum(weights.values())
        return {i: weight / total for i, weight in weights.items()}

    if typical_p < 1:
        p = normalised()
        mean = math.fsum(p[i] * tempered[i] for i in kept)
        distance = {i: abs(tempered[i] - mean) for i in kept}
        kept, margin = _shortest_prefix(sorted(kept, key=lambda i: (distance[i], i)), p, typical_p)
        levels = sorted({tempered[i] for i in p})  # equally far above and below the mean, rounding decides
        gaps = np.diff(np.sort([abs(level - mean) for level in levels]))
        margin = min([margin, *gaps])
    if top_p < 1:
        kept, near = _shortest_prefix(sorted(kept, key=lambda i: (-tempered[i], i)), normalised(), top_p)
        margin = min(margin, near)
    if min_p > 0:
        p = normalised()
        most = max(p.values())
        shares = {i: p[i] / most for i in kept}
        margin = min([margin, *(abs(share - min_p) for share in shares.values() if share != min_p)])
        kept = [i for i in kept if shares[i] >= min_p]
    return normalised(), margin
