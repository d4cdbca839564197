"""Block-quantised weights: the arithmetic of weight-only quantisation, independent of the graph.

A block is a run of inputs of one row that share a scale and, at 4 bits, a zero point. With blocks of up to 64 (not
128) ONNX Runtime's MatMulNBits computes each row of a batch separately, so a request's logits do not depend on what
else is in the batch; of these sizes, 64 has the fewest scales to read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kiara_runtime.bundle.variants import VARIANTS
from kiara_runtime.errors import UserError

SLAB = 1024  # rows
SMALLEST_SCALE = np.float32(2.0**-24)  # of float16


@dataclass(frozen=True)
class Blocks:
    """A quantised matrix (out, in): weight = (value - zero) * scale.

    values: uint8 (out, blocks, size), below 2 ** bits. scales: float16 (out, blocks). zeros: uint8 (out, blocks),
    or None if every zero point is 2 ** (bits - 1).
    """

    bits: int
    values: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zeros: NDArray[np.uint8] | None = None

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
        """Values as MatMulNBits reads them: (out, blocks, size * bits / 8), the first of a pair in the low nibble."""
        return self.values if self.bits == 8 else _pairs(self.values)

    def packed_zeros(self) -> NDArray[np.uint8]:
        """4-bit zero points as MatMulNBits reads them, (out, ceil(blocks / 2)); an odd count is padded."""
        assert self.zeros is not None and self.bits == 4
        return _pairs(np.pad(self.zeros, ((0, 0), (0, self.zeros.shape[1] % 2))))

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


def round_int8(weight: NDArray[np.float32], sizes: tuple[int, ...] = VARIANTS[0].blocks) -> Blocks:
    """Symmetric 8-bit blocks, each scaled by its largest weight. weight: (out, in). sizes: as for `block_size`."""
    rows, columns = weight.shape
    size = block_size(columns, sizes)
    values = np.empty((rows, columns // size, size), dtype=np.uint8)
    scales = np.empty(values.shape[:2], dtype=np.float16)
    for start in range(0, rows, SLAB):  # in slabs: intermediate values take several times the size of the weights
        slab = slice(start, start + SLAB)
        grouped = weight[slab].reshape(-1, columns // size, size)
        scales[slab] = half_scales(np.abs(grouped).max(axis=2) / np.float32(127))
        steps = np.rint(grouped / scales[slab].astype(np.float32)[..., None])
        values[slab] = np.clip(steps, -128, 127) + 128
    return Blocks(8, values, scales)


def per_channel(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 with one scale per row: values (out, in), scales (out,)."""
    scales = np.maximum(np.abs(weight).max(axis=1) / np.float32(127), SMALLEST_SCALE)
    return np.rint(weight / scales[:, None]).astype(np.int8), scales


def half_scales(scales: NDArray[np.float32]) -> NDArray[np.float16]:
    """Scales in float16, never zero. Weights are rounded with these, so rounding the scales adds no error."""
    if scales.max(initial=0) > np.finfo(np.float16).max:
        raise UserError("--quantize", f"a scale of {scales.max():.3g} is too large for float16", "use none")
    return np.maximum(scales, SMALLEST_SCALE).astype(np.float16)


def _pairs(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return values[..., ::2] | np.left_shift(values[..., 1::2], np.uint8(4))
