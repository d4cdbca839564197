"""Pure functions over logits: which tokens may be sampled, with what weights, and which one a random number picks.

A filter takes (logits (K,) after temperature, its parameter) and returns the indices to keep, ascending. It treats
what the previous filters kept as the whole distribution. No filter sorts a whole vocabulary, which would take longer
than a small model's step.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Floats = NDArray[np.float64]
Places = NDArray[np.intp]

BLOCK = 256
BUCKETS = 1024
NEAR, FAR = 12.0, 32.0  # nats; scores beyond FAR share the last bucket


def penalise(logits: Logits, seen: Places, penalty: float) -> Logits:
    """Divide positive and multiply negative logits of the tokens `seen` (Keskar et al. 2019). (V,) -> new (V,)."""
    changed, before = logits.copy(), logits[seen]
    changed[seen] = np.where(before > 0, before / penalty, before * penalty)
    return changed


def keep(
    logits: Logits, temperature: float, top_k: int = 0, typical_p: float = 1.0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[Places | None, Floats]:
    """Return the ids to keep, ascending (None: all), and their weights: proportional to probabilities, the largest 1.

    The filters see the logits after temperature, in the order of the parameters.
    """
    ids = None
    if 0 < top_k < len(logits):  # the k likeliest (Fan et al. 2018), at any temperature
        ids = np.sort(ranked(-logits, top_k)[:top_k])
        logits = logits[ids]
    tempered = _temper(logits, temperature)
    for places_of, value, off in ((_typical, typical_p, 1.0), (_top_p, top_p, 1.0), (_min_p, min_p, 0.0)):
        if value != off:
            places = places_of(tempered, value)
            ids = places if ids is None else ids[places]
            tempered = tempered[places] - tempered[places].max()
    return ids, np.exp(tempered, out=tempered)


def pick(ids: Places | None, weights: Floats, uniform: float) -> int:
    """Return the id at `uniform`, in [0, 1), of the cumulative weights; never one whose weight is 0.

    Sums blocks first, then the weights of one block: several times faster than a cumulative sum of all.
    """
    blocks: Floats = np.add.reduceat(weights, range(0, len(weights), BLOCK)).cumsum()
    goal = uniform * float(blocks[-1])  # stays below the sum even after rounding
    block = int(np.searchsorted(blocks, goal, "right"))
    inside = weights[block * BLOCK : (block + 1) * BLOCK].cumsum()
    missing = goal - (float(blocks[block - 1]) if block else 0.0)
    last = int(np.searchsorted(inside, float(inside[-1])))  # in case the two sums differ in their last bits
    place = block * BLOCK + min(int(np.searchsorted(inside, missing, "right")), last)
    return place if ids is None else int(ids[place])


def log_softmax(logits: Logits) -> Floats:
    """Natural logarithms of the probabilities. (V,) -> (V,)."""
    below = _temper(logits, 1.0)
    return np.subtract(below, math.log(np.exp(below).sum()), out=below)


def nats(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> Floats:
    """Negative log-likelihood of each of the targets (S,) under logits (S, V), in nats, (S,)."""
    ahead = logits - logits.max(-1, keepdims=True)
    return np.log(np.exp(ahead).sum(-1, dtype=np.float64)) - ahead[np.arange(len(targets)), targets]


def ranked(scores: NDArray[np.floating], least: int) -> Places:
    """Indices by ascending score, ties by index: the first `least` or somewhat more, or all."""
    places = np.arange(len(scores))
    if least < len(scores):
        last = max(least - 1, 0)
        places = np.flatnonzero(scores <= np.partition(scores, last)[last])
    return places[np.argsort(scores[places], kind="stable")]


def _temper(logits: Logits, temperature: float) -> Floats:
    """Subtract the largest logit and divide by the temperature."""
    below = np.subtract(logits, logits.max(), dtype=np.float64)
    with np.errstate(over="ignore"):  # a temperature near 0 gives -inf, which is right
        return np.divide(below, temperature, out=below)


def _typical(tempered: Floats, part: float) -> Places:
    """The tokens whose surprisal is nearest to its mean, the entropy, up to `part` (Meister et al. 2023)."""
    finite = np.maximum(tempered, -1000.0)  # exp is 0 there, and 0 * -inf would be NaN
    weights = np.exp(finite)
    mean = (weights * finite).sum() / weights.sum()  # it and `finite` are off by the same log of the sum, which cancels
    return _reach(np.abs(finite - mean), weights, part)


def _top_p(tempered: Floats, part: float) -> Places:
    """The likeliest tokens, up to and including the one that reaches `part` (nucleus, Holtzman et al. 2020)."""
    return _reach(-tempered, np.exp(tempered), part)


def _min_p(tempered: Floats, part: float) -> Places:
    """The tokens at least `part` times as likely as the likeliest (Nguyen et al. 2024)."""
    return np.flatnonzero(tempered >= math.log(part))


def _reach(scores: Floats, weights: Floats, part: float) -> Places:
    """Indices of the lowest scores, up to and including the one where the weights reach `part` of their sum.

    scores: in nats, from 0. Usually the few tokens within NEAR suffice, and the rest are skipped.
    """
    goal = part * float(weights.sum())
    near = np.flatnonzero(scores < NEAR)
    if weights[near].sum() >= goal:
        return near[_lowest(scores[near], weights[near], goal)]
    return _lowest(scores, weights, goal)


def _lowest(scores: Floats, weights: Floats, goal: float) -> Places:
    """As `_reach`, by buckets of scores: only the bucket in which the weights reach `goal` is sorted."""
    span = min(max(float(scores.max()), 1e-9), FAR)
    buckets = np.minimum(scores * (BUCKETS / span), BUCKETS).astype(np.intp)
    masses = np.bincount(buckets, weights).cumsum()
    cut = int(np.searchsorted(masses[:-1], goal))
    inside = np.flatnonzero(buckets == cut)
    order = inside[ranked(scores[inside], len(inside))]
    missing = goal - (float(masses[cut - 1]) if cut else 0.0)
    reached = int(np.searchsorted(weights[order].cumsum(), missing)) + 1
    return np.sort(np.concatenate([np.flatnonzero(buckets < cut), order[:reached]]))
