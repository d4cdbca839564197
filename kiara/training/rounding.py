"""Quantisation-aware training: passes use weights on the grid of a variant, and the optimizer updates exact ones.

For int8-dynamic, passes round the activations that the projections read, too.

The gradient at the rounded weights is applied to the exact ones (the straight-through estimator, Bengio et al. 2013).
Weights are rounded in place around a pass, so compiled code, gradient buckets and shards need no change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from kiara.grid import Grid
from kiara.model import GPT, Linear
from kiara.training.parallel import like, local, whole
from kiara_runtime.bundle import find_variant

_EXACT = "exact/"  # prefix of exact weights among the optimizers' tensors


class Rounding:
    """Rounds the matrices of a model to a variant's grid, and restores them."""

    def __init__(self, model: GPT, name: str) -> None:
        """name: of a variant with block-quantised weights."""
        variant = find_variant(name)
        assert variant is not None
        self.variant = name
        self.exact: dict[str, Tensor] = {}  # filled while the model's weights are rounded
        self._matrices = model.matrices()
        self._grids = {name: Grid.for_matrix(variant, name, weight.shape[1]) for name, weight in self._matrices.items()}
        dynamic = variant.rounding == "dynamic"
        self._projections = [part for part in model.layers.modules() if dynamic and isinstance(part, Linear)]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Round the weights until the block ends."""
        with torch.no_grad():
            self.exact = {name: weight.detach().clone() for name, weight in self._matrices.items()}
            for name, weight in self._matrices.items():
                mine = local(weight)
                mine.copy_(self._grids[name].nearest(mine))
        self._round_activations(True)
        try:
            yield
        finally:
            self._round_activations(False)
            _set(self._matrices, self.exact)
            self.exact = {}

    def _round_activations(self, rounded: bool) -> None:
        for projection in self._projections:
            projection.rounded = rounded


def exact_tensors(rounding: Rounding | None) -> dict[str, Tensor]:
    """The exact weights to save beside rounded ones, by name; none if the weights are not rounded at the moment."""
    return {f"{_EXACT}{name}": whole(weight).cpu() for name, weight in rounding.exact.items()} if rounding else {}


def load_exact(model: GPT, tensors: Mapping[str, Tensor]) -> None:
    """Restore the exact weights that `exact_tensors` saved, if any."""
    exact = {name.removeprefix(_EXACT): tensor for name, tensor in tensors.items() if name.startswith(_EXACT)}
    _set({name: weight for name, weight in model.matrices().items() if name in exact}, exact)


@torch.no_grad()
def _set(matrices: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, weight in matrices.items():
        weight.copy_(like(values[name], weight))
