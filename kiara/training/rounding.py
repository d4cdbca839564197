"""Quantisation-aware training: passes use weights on the grid of a variant, and the optimizer updates exact ones.

For int8-dynamic, passes round the activations that the projections read, too. For int4, passes use exact tables:
rounding them there gained nothing (docs/training.md). At validations and in checkpoints all matrices of int4 are
rounded so that errors compensate each other.

The gradient at the rounded weights is applied to the exact ones (the straight-through estimator, Bengio et al. 2013).
Weights are rounded in place around a pass, so compiled code, gradient buckets and shards need no change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from kiara.grid import Grid
from kiara.model import GPT, Linear
from kiara.training.parallel import like, local, whole
from kiara_runtime.bundle import find_variant

Curvatures = Callable[[], dict[str, Tensor]]
_EXACT = "exact/"  # prefix of exact weights among the optimizers' tensors
_COMPENSATED = ("int4",)  # their tables stay exact in a pass


class Rounding:
    """Rounds the matrices of a model to a variant's grid, and restores them."""

    def __init__(self, model: GPT, name: str, curvatures: Curvatures | None = None) -> None:
        """name: of a variant with block-quantised weights. curvatures: by name of a matrix, (D, D), for variants whose
        errors compensate each other; without them weights are rounded to the nearest.
        """
        variant = find_variant(name)
        assert variant is not None
        self.variant = name
        self.exact: dict[str, Tensor] = {}  # filled while the model's weights are rounded
        self._matrices = model.matrices()
        self._grids = {name: Grid.for_matrix(variant, name, weight.shape[1]) for name, weight in self._matrices.items()}
        self._curvatures = curvatures if name in _COMPENSATED else None
        self._shipped: dict[str, Tensor] = {}  # the rounded matrices, until the next step
        dynamic = variant.rounding == "dynamic"
        self._projections = [part for part in model.layers.modules() if dynamic and isinstance(part, Linear)]

    @contextmanager
    def __call__(self, training: bool = False) -> Iterator[None]:
        """Round the weights until the block ends. training: for the passes of a step."""
        self.exact = {name: weight.detach().clone() for name, weight in self._matrices.items()}
        if training:
            self._shipped = {}
        try:
            if self._curvatures is None:
                self._round(self._matrices)
            elif training:
                self._round(name for name in self._matrices if name.startswith("layers."))
            else:
                self._compensate(self._curvatures)
            self._round_activations(True)
            yield
        finally:
            self._round_activations(False)
            _set(self._matrices, self.exact)
            self.exact = {}

    @torch.no_grad()
    def _round(self, names: Iterable[str]) -> None:
        """Round matrices to the nearest values of their grids."""
        for name in names:
            mine = local(self._matrices[name])
            mine.copy_(self._grids[name].nearest(mine))

    def _compensate(self, curvatures: Curvatures) -> None:
        """Round all matrices so that the errors of a row compensate each other.

        Once as long as no step is taken, because the last checkpoint is followed by another validation.
        """
        if not self._shipped:
            curvature = curvatures()
            for name, weight in self._matrices.items():
                with torch.no_grad():
                    self._shipped[name] = self._grids[name].compensated(local(weight), curvature[name])
        with torch.no_grad():
            for name, weight in self._matrices.items():
                local(weight).copy_(self._shipped[name])

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
