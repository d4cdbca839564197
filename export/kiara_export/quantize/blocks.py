"""Block-quantised weights: the arithmetic of weight-only quantisation, independent of the graph.

A block is a run of inputs of one row that share a scale and, at 4 bits, a zero point. With blocks of up to 64 (not
128) ONNX Runtime's MatMulNBits computes each row of a batch separately, so a request's logits do not depend on what
else is in the batch; of these sizes, 64 has the fewest scales to read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kiara.grid import Grid
from kiara_runtime.errors import UserError

SLAB = 1024  # rows


@dataclass(frozen=True)
class Blocks:
    """A quantised matrix (out, in): weight = (value - zero) * scale.

    values: uint8 (out, blocks, size), below 2 ** bits. scales: float16 (out, blocks). zeros: uint8 (out, blocks),
    or None if every zero point is 2 ** (bits - 1). kept: whether the matrix had these blocks before.
    """

    bits: int
    values: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zeros: NDArray[np.uint8] | None = None
    kept: bool = False

    @property
    def rows(self) -> int:
        return self.values.shape[0]

    @property
    def columns(self) -> int:
        return self.values.shape[1] * self.values.shape[2]

    @property
    def size(self) -> int:
        return self.values.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        zeros = 0 if self.zeros is None else self.packed_zeros().nbytes
        return self.values.size * self.bits // 8 + self.scales.nbytes + zeros

    def packed(self) -> NDArray[np.uint8]:
        """As MatMulNBits reads them: (out, blocks, size * bits / 8), the first of a byte in its lowest bits."""
        return _packed(self.values, self.bits)

    def packed_zeros(self) -> NDArray[np.uint8]:
        """4-bit zero points as MatMulNBits reads them, (out, ceil(blocks / 2)); an odd count is padded."""
        assert self.zeros is not None and self.bits == 4
        return _packed(np.pad(self.zeros, ((0, 0), (0, self.zeros.shape[1] % 2))), self.bits)

    def weight(self) -> NDArray[np.float32]:
        """The dequantised matrix, float32 (out, in)."""
        zeros = np.float32(1 << (self.bits - 1)) if self.zeros is None else self.zeros[..., None].astype(np.float32)
        return ((self.values - zeros) * self.scales.astype(np.float32)[..., None]).reshape(self.rows, self.columns)


def block_size(columns: int, sizes: tuple[int, ...]) -> int:
    """The first of `sizes` that divides a matrix's inputs; raises UserError if none does."""
    size = next((size for size in sizes if columns % size == 0), None)
    if size is None:
        raise UserError("--quantize", f"a matrix has {columns} inputs, not a multiple of 16", "use none or fp16")
    return size


def round_to(grid: Grid, weight: NDArray[np.float32]) -> Blocks:
    """Blocks of weight (out, in) on a grid; weights that lie on it already keep every bit."""
    rows, columns = weight.shape
    size = block_size(columns, grid.sizes)
    values = np.empty((rows, columns // size, size), dtype=np.uint8)
    scales = np.empty(values.shape[:2], dtype=np.float16)
    for start in range(0, rows, SLAB):  # in slabs: intermediate values take several times the size of the weights
        slab = slice(start, start + SLAB)
        steps, exact = grid.steps(torch.from_numpy(weight[slab]))
        if not torch.isfinite(exact).all():
            largest = np.abs(weight[slab]).max()
            raise UserError(
                "--quantize", f"a weight of {largest:.3g} is too large for float16 scales", "use --quantize none"
            )
        values[slab] = steps.numpy() + (1 << (grid.bits - 1))
        scales[slab] = exact.numpy()
    return Blocks(grid.bits, values, scales)


def per_channel(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 with one scale a row: values (out, in), scales (out,), float32 with the values of float16."""
    made = round_to(Grid.rows(weight.shape[1]), weight)
    return (made.values[:, 0].astype(np.int16) - 128).astype(np.int8), made.scales[:, 0].astype(np.float32)


def _packed(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Several values of the last axis in a byte."""
    each = 8 // bits
    shifted = [np.left_shift(values[..., i::each], np.uint8(bits * i)) for i in range(each)]
    return np.bitwise_or.reduce(shifted)
