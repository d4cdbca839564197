"""The grids that weights are rounded to, by training and by export alike.

A row of a matrix is divided into blocks; each has a float16 scale, and its weights are integer multiples of it. Every
grid is idempotent: rounding weights that are on it changes no bit. So a model trained on a grid is exported exactly.

Shape letters: O outputs (rows), I inputs, N blocks of a row, K inputs of a block, I = N K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kiara.compensation import compensated
from kiara_runtime.bundle import Variant

SMALLEST_SCALE = 2.0**-24  # of float16
ROWS_AT_ONCE = 1 << 12


@dataclass(frozen=True)
class Grid:
    """Symmetric integers of `bits` bits. sizes: inputs per block; the first that divides a row is used.

    At 8 bits the largest weight of a block becomes 127 or -127. At fewer bits it becomes -2 ** (bits - 1), with a scale
    of the opposite sign, because at 4 bits -8 exists and 8 does not. ONNX Runtime's quantiser and llama.cpp's Q4_0 have
    the same 4-bit grid. Of several scales near that one, a block gets the one with the smallest squared error, which
    reduces the error by a tenth at 4 bits and a seventh at 2.
    """

    bits: int
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, variant: Variant) -> Grid:
        """The grid of a variant whose weights lie in blocks without zero points."""
        return cls(variant.bits, variant.blocks)

    @classmethod
    def for_matrix(cls, variant: Variant, name: str, inputs: int) -> Grid:
        """The grid of a matrix in a variant. name: in the model; inputs: its columns.

        Where activations have 8 bits, too, a row of a matrix inside the blocks has one scale; tables are as in others.
        """
        if variant.rounding == "dynamic" and name.startswith("layers."):
            return cls.rows(inputs)
        return cls.of(variant)

    @classmethod
    def rows(cls, inputs: int) -> Grid:
        """8 bits with one scale a row."""
        return cls(8, (inputs,))

    @property
    def bytes_per_weight(self) -> float:
        """Bytes on disk, including a share of the block's scale."""
        return self.bits / 8 + 2 / self.sizes[0]

    def size(self, inputs: int) -> int | None:
        """Inputs per block for rows of `inputs`; None if no size divides it."""
        return next((size for size in self.sizes if inputs % size == 0), None)

    def steps(self, weight_OI: Tensor, importance_I: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Integers (O, N, K) and scales (O, N), both float32; a scale too large for float16 is infinite.

        importance: of the squared error of each input; equal by default.
        """
        size = self.size(weight_OI.shape[1])
        assert size is not None
        weight_ONK = weight_OI.unflatten(1, (-1, size))
        exact_ON = self._largest_to_last_step(weight_ONK)
        if self.bits == 8:
            scale_ON = self._half(exact_ON)
            return self._rounded(weight_ONK, scale_ON), scale_ON
        scales_CON = torch.stack([self._half(exact_ON * factor) for factor in self._factors()])
        errors_CON = torch.stack([self._error(weight_ONK, scale_ON, importance_I) for scale_ON in scales_CON])
        scale_ON = scales_CON.gather(0, errors_CON.argmin(0, keepdim=True))[0]
        return self._rounded(weight_ONK, scale_ON), scale_ON

    def nearest(self, weight_OI: Tensor) -> Tensor:
        """The weights rounded to the grid, (O, I)."""
        steps_ONK, scale_ON = self.steps(weight_OI)
        return steps_ONK.mul_(scale_ON[..., None]).flatten(1)

    def compensated(self, weight_OI: Tensor, moments_II: Tensor) -> Tensor:
        """The weights rounded to the grid, (O, I), so that errors of a row compensate each other.

        moments: second moments of the inputs, which weigh the errors when scales are chosen, too. The largest step of
        a block is that of its nearest values, so that the same scale is found again.
        """
        steps_ONK, scale_ON = self.steps(weight_OI, moments_II.diagonal())
        size, low = steps_ONK.shape[-1], -(1 << (self.bits - 1))
        largest_ON = steps_ONK.abs().argmax(-1)

        def rounded(values_O: Tensor, column: int) -> Tensor:
            block, place = divmod(column, size)
            steps_O = (values_O / scale_ON[:, block]).round().clamp(low, -low - 1)
            return torch.where(largest_ON[:, block] == place, steps_ONK[:, block, place], steps_O) * scale_ON[:, block]

        return compensated(weight_OI, moments_II, rounded)

    @torch.no_grad()
    def holds(self, weight_OI: Tensor) -> bool:
        """Whether every weight is on the grid already."""
        parts = weight_OI.split(ROWS_AT_ONCE)  # so that others are found out early, with little memory
        return self.size(weight_OI.shape[1]) is not None and all(
            torch.equal(self.nearest(part), part) for part in parts
        )

    def _factors(self) -> tuple[float, ...]:
        """Scales to try, relative to the first.

        Below 1 the largest weight is clipped to the last integer; with the last factor it becomes the one before that.
        Either way the same scale is found again, with no error, in the rounded weights.
        """
        steps = 1 << (self.bits - 1)
        return (1.0, 0.95, 0.9, 0.85, 0.8, steps / (steps - 1))

    def _rounded(self, weight_ONK: Tensor, scale_ON: Tensor) -> Tensor:
        low = -(1 << (self.bits - 1))
        return (weight_ONK / scale_ON[..., None]).round_().clamp_(low, -low - 1)

    def _error(self, weight_ONK: Tensor, scale_ON: Tensor, importance_I: Tensor | None) -> Tensor:
        """Squared error of each block."""
        squares_ONK = self._rounded(weight_ONK, scale_ON).mul_(scale_ON[..., None]).sub_(weight_ONK).square_()
        if importance_I is not None:
            squares_ONK.mul_(importance_I.view(squares_ONK.shape[1:]))
        return squares_ONK.sum(-1)

    def _largest_to_last_step(self, weight_ONK: Tensor) -> Tensor:
        """The scale at which the largest weight of a block becomes the last integer."""
        low_ON, high_ON = weight_ONK.amin(-1), weight_ONK.amax(-1)
        if self.bits == 8:
            return torch.maximum(high_ON, -low_ON) / 127
        return torch.where(high_ON > -low_ON, high_ON, low_ON) / -(1 << (self.bits - 1))

    def _half(self, exact_ON: Tensor) -> Tensor:
        """The nearest float16 value, because that is what is stored."""
        scale_ON = exact_ON.half().float()
        # Among float16's smallest numbers, a scale has too few bits to be found again in the rounded weights.
        short_ON = exact_ON.abs() < 2.0 ** (self.bits - 25)
        return torch.where(short_ON, self._short(exact_ON), scale_ON)

    def _short(self, exact_ON: Tensor) -> Tensor:
        """At 8 bits the next power of two; at fewer the smallest scale: it clips weights that are below 1e-5."""
        if self.bits < 8:
            return torch.full_like(exact_ON, SMALLEST_SCALE)
        fraction, exponent = torch.frexp(exact_ON.clamp(min=SMALLEST_SCALE))
        return torch.ldexp(torch.ones_like(exact_ON), exponent - (fraction == 0.5).int())
