"""Quantisation in the loop: a pass sees weights on the grid of the variant that will ship, a step moves exact ones.

The gradient at the rounded weights is applied to the exact ones as it is (the straight-through estimator, Bengio et al.
2013). Rounding happens in place, around the pass: the compiled model, gradient buckets and shards stay what they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from kiara.grid import Grid
from kiara.model import GPT
from kiara.training.parallel import like, local, whole
from kiara_runtime.bundle import find_variant

_EXACT = "exact/"  # begins the names of full-precision weights among the optimizers' tensors


class Rounding:
    """Puts the matrices of a model on a variant's grid, and back."""

    def __init__(self, model: GPT, name: str) -> None:
        """name: of a variant whose weights lie in blocks."""
        variant = find_variant(name)
        assert variant is not None
        self.variant, self.grid = name, Grid.of(variant)
        self.exact: dict[str, Tensor] = {}  # while the model's own weights are rounded
        self._matrices = model.matrices()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Round the weights for as long as the block runs."""
        with torch.no_grad():
            self.exact = {name: weight.detach().clone() for name, weight in self._matrices.items()}
            for weight in map(local, self._matrices.values()):
                weight.copy_(self.grid.nearest(weight))
        try:
            yield
        finally:
            _set(self._matrices, self.exact)
            self.exact = {}


def exact_tensors(rounding: Rounding | None) -> dict[str, Tensor]:
    """Named tensors to save beside rounded weights; none where the weights are not rounded at the moment."""
    return {f"{_EXACT}{name}": whole(weight).cpu() for name, weight in rounding.exact.items()} if rounding else {}


def load_exact(model: GPT, tensors: Mapping[str, Tensor]) -> None:
    """Go on from the exact weights that `exact_tensors` saved, where there are any."""
    exact = {name.removeprefix(_EXACT): tensor for name, tensor in tensors.items() if name.startswith(_EXACT)}
    _set({name: weight for name, weight in model.matrices().items() if name in exact}, exact)


@torch.no_grad()
def _set(matrices: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, weight in matrices.items():
        weight.copy_(like(values[name], weight))
