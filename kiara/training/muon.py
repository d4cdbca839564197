"""Muon (Jordan et al. 2024): momentum whose update is orthogonalised, for the matrices inside the blocks.

Own code and not `torch.optim.Muon`, for two reasons. Matrices that are packed in one weight (q, k and v; gate and up)
are orthogonalised separately; docs/recipe.md measures it for q, k and v. And the iteration has the run's precision:
PyTorch's is always in bfloat16, which is slower than float32 on a CPU that has no instructions for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, optim

from kiara.model import GPT, packed
from kiara.training.lora import adapters
from kiara.training.parallel import like, whole

MOMENTUM = 0.95
ITERATIONS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)  # Jordan's, for the steepest slope at zero
UPDATE_RMS = 0.2  # about AdamW's, so that both optimizers take similar rates (Liu et al. 2025)


class Muon(optim.Optimizer):
    """Nesterov momentum, orthogonalised, and decoupled weight decay. Groups carry `lr` and `weight_decay`."""

    def __init__(self, groups: list[dict[str, Any]], parts: Mapping[Tensor, list[int]], dtype: torch.dtype) -> None:
        """parts: the rows of each matrix packed in a weight; others are one matrix. dtype: of the iteration."""
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self._parts, self._dtype = parts, dtype

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the weights that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(self._update(weight, weight.grad), alpha=-group["lr"])

    def _update(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """The step's direction; every matrix has an RMS of about UPDATE_RMS."""
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        ahead = whole(torch.lerp(gradient, momentum, MOMENTUM)).to(self._dtype)
        parts = ahead.split(self._parts.get(weight, len(ahead)))
        update = [orthogonal(part).to(weight.dtype) * UPDATE_RMS * max(part.shape) ** 0.5 for part in parts]
        return like(torch.cat(update), weight)


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with singular values of about 1 (0.7 to 1.2), by Newton-Schulz iterations in its precision."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)  # singular values of at most 1
    if x.shape[1] >= 2 * x.shape[0] and x.dtype == torch.float32:
        x = _factor(x @ x.T) @ x
    else:
        for _ in range(ITERATIONS):
            x = torch.addmm(x, _higher_terms(x @ x.T), x, beta=COEFFICIENTS[0])
    return x.T if tall else x


def _factor(gram: Tensor) -> Tensor:
    """The product of all iterations' polynomials, computed on the small matrix X X^T: half the work if X is wide.

    Rounding errors of the squares grow with every iteration, too much for bfloat16.
    """
    factor = polynomial = _polynomial(gram)
    for _ in range(ITERATIONS - 1):
        gram = polynomial @ gram @ polynomial
        polynomial = _polynomial(gram)
        factor = polynomial @ factor
    return factor


def _polynomial(gram: Tensor) -> Tensor:
    """a I + b G + c G^2."""
    polynomial = _higher_terms(gram)
    polynomial.diagonal().add_(COEFFICIENTS[0])
    return polynomial


def _higher_terms(gram: Tensor) -> Tensor:
    _, b, c = COEFFICIENTS
    return torch.addmm(gram, gram, gram, beta=b, alpha=c)


def packed_rows(model: GPT) -> dict[Tensor, list[int]]:
    """The weights and adapters in which several matrices are packed, with the rows of each."""
    found: dict[Tensor, list[int]] = {}
    for name, weight in model.named_parameters():
        if parts := packed(model.config, name):
            found[weight] = [rows for _, rows in parts]
    for layer in adapters(model).values():
        found[layer.lora_A] = [layer.rank] * len(layer.rows)
        found[layer.lora_B] = layer.rows
    return found
