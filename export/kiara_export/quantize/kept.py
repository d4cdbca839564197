"""Matrices that were rounded before they were imported keep their blocks, so that nothing is rounded twice.

GGUF's Q8_0, Q5_0 and Q4_0 have symmetric blocks of 32 weights with a float16 scale, as MatMulNBits does. Its other
types have float minimums, or scales that are products: their weights are rounded as any others.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kiara.grid import Grid
from kiara_export.quantize.blocks import SLAB, Blocks, block_size, round_to
from kiara_runtime.bundle import VARIANTS

SIZE = 32
LAST = {8: (127, 16, 8), 4: (-8,)}  # by bits: what the largest weight of a block is, in steps (Q8_0, Q5_0, Q4_0)


def rounded(grid: Grid, weight: NDArray[np.float32]) -> Blocks:
    """Blocks of weight (out, in): those that it has already, or else on the grid.

    Where the grid is finer, they are divided: activations are rounded by block, too, so that this reduces their error.
    """
    found, size = kept(weight, grid.bits), block_size(weight.shape[1], grid.sizes)
    if found is None:
        return round_to(grid, weight)
    if size >= SIZE:
        return found
    values = found.values.reshape(len(weight), -1, size)
    return replace(found, values=values, scales=found.scales.repeat(SIZE // size, axis=1))


def round_int8(weight: NDArray[np.float32]) -> Blocks:
    """8-bit blocks as in the int8 variant, of weight (out, in)."""
    return rounded(Grid.of(VARIANTS[0]), weight)


def kept(weight: NDArray[np.float32], bits: int) -> Blocks | None:
    """The blocks of `bits` bits that hold weight (out, in) exactly; None if there are none."""
    if weight.shape[1] % SIZE or bits not in LAST or not weight.any():
        return None
    values = np.empty((len(weight), weight.shape[1] // SIZE, SIZE), np.uint8)
    scales = np.empty(values.shape[:2], np.float16)
    for start in range(0, len(weight), SLAB):
        slab = slice(start, start + SLAB)
        if not _fill(values[slab], scales[slab], weight[slab].reshape(values[slab].shape), bits):
            return None
    return Blocks(bits, values, scales, kept=True)


def _fill(values: NDArray[np.uint8], scales: NDArray[np.float16], weight: NDArray[np.float32], bits: int) -> bool:
    """Write values (out, blocks, size) and scales (out, blocks) of Blocks; returns whether they give the weights."""
    low, high, middle = weight.min(-1), weight.max(-1), 1 << (bits - 1)
    left = np.ones(low.shape, np.bool_)
    for last in LAST[bits]:
        largest = np.where(high > -low, high, low) if last < 0 else np.maximum(high, -low)
        with np.errstate(all="ignore"):  # scales of 0, or too large for float16: they do not give the weights
            scale = (largest / last).astype(np.float16)
            wide = scale.astype(np.float32)[..., None]
            steps = np.where(wide == 0, 0, np.rint(weight / wide)).clip(-middle, middle - 1)
            exact = left & (steps * wide == weight).all(-1)
        values[exact], scales[exact] = (steps[exact] + middle).astype(np.uint8), scale[exact]
        left &= ~exact
    return not left.any()
