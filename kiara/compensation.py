"""Rounding whose errors later columns compensate (GPTQ, Frantar et al. 2023).

It minimises the error of a matrix's outputs, tr(E H E^T), where H is the second moments of its inputs. The export
rounds projections by it, and training the tables.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

DAMPING = 0.01  # of H's mean diagonal, added to the diagonal (as in the paper)


def compensated(
    weight_OI: Tensor, moments_II: Tensor, rounded: Callable[[Tensor, int], Tensor], run: int = 64
) -> Tensor:
    """The matrix with every column rounded, (O, I).

    Columns are rounded in order of falling importance, so that all others can compensate the errors of the important
    ones. rounded: (a column as it is by then, its number) -> its rounded values. run: columns between two updates of
    all later ones.
    """
    importance = moments_II.diagonal()
    mean = importance.mean().clamp(min=1e-12)
    order = importance.argsort(descending=True)
    damped = (moments_II + torch.diag((importance == 0) * mean + DAMPING * mean))[order][:, order]
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    left, found = weight_OI[:, order].contiguous(), torch.empty_like(weight_OI)
    for start in range(0, len(order), run):
        end = min(start + run, len(order))
        mine, inner = left[:, start:end], factor[start:end, start:end]
        errors = torch.empty_like(mine)
        for j, column in enumerate(order[start:end].tolist()):
            found[:, column] = rounded(mine[:, j], column)
            errors[:, j] = (mine[:, j] - found[:, column]) / inner[j, j]
            mine[:, j + 1 :] -= errors[:, j, None] * inner[j, j + 1 :]
        left[:, end:] -= errors @ factor[start:end, end:]
    return found


def adding_moments(moments_II: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A forward pre-hook that adds the second moments of what a module reads, (..., I), to float32 `moments`.

    In place, so that autocast does not round the product.
    """

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        flat = inputs[0].detach().reshape(-1, len(moments_II)).float()
        moments_II.addmm_(flat.T, flat)

    return add
