"""Choose the matrices of the int4 variant that keep 8 bits: as many as a budget allows, or as few as a loss requires.

The loss that a matrix causes at 4 bits is estimated once, to second order: half the squared error of each of its
outputs, (E H E^T)_nn, times the mean squared gradient of the loss there (the diagonal of K-FAC's factorisation,
Martens and Grosse 2015). Matrices with the highest estimated loss per extra byte are promoted first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kiara_export.quantize.blocks import Blocks
from kiara_export.quantize.kept import round_int8
from kiara_runtime.errors import UserError


@dataclass(frozen=True)
class Choice:
    """A matrix at both widths. cost: estimated loss of the 4-bit one, in the same unit for all matrices."""

    four: Blocks
    eight: Blocks
    cost: float

    @property
    def extra_bytes(self) -> int:
        return self.eight.nbytes - self.four.nbytes


class Mixed:
    """The matrices of the layers in order of promotion to 8 bits; all other matrices have 8 bits anyway."""

    def __init__(self, choices: dict[str, Choice]) -> None:
        self._choices = choices
        self._order = sorted(choices, key=lambda name: choices[name].cost / choices[name].extra_bytes, reverse=True)

    def __len__(self) -> int:
        return len(self._order)

    def eight(self, promoted: int) -> list[str]:
        """Names of the matrices that keep 8 bits."""
        return sorted(self._order[:promoted])

    def rounded(self, promoted: int) -> Callable[[str, NDArray[np.float32]], Blocks]:
        """The rounding function for `lower.blocks`, with the first `promoted` matrices at 8 bits."""
        eight = set(self.eight(promoted))

        def choose(name: str, weight: NDArray[np.float32]) -> Blocks:
            if name not in self._choices:
                return round_int8(weight)
            return self._choices[name].eight if name in eight else self._choices[name].four

        return choose

    def within(self, plain_bytes: int, budget: int) -> int:
        """How many promotions fit the budget if the graph without any takes `plain_bytes`."""
        if plain_bytes > budget:
            raise over_budget(plain_bytes, budget)
        sizes = plain_bytes + np.cumsum([self._choices[name].extra_bytes for name in self._order])
        return int((sizes <= budget).sum())


def over_budget(least: int, budget: int) -> UserError:
    """The error for a budget that is too small. least: bytes of the smallest graph."""
    return UserError(
        f"--budget {budget / 1000000.0:.2f}MB",
        f"the smallest graph takes {least / 1000000.0:.2f}MB",
        "raise the budget, or use a smaller model",
    )


def fewest(count: int, loss_of: Callable[[int], float], limit: float) -> int:
    """The fewest promotions whose measured loss is within `limit`, by bisection; `count`, the most, if none is."""
    low, high = 0, count
    if loss_of(high) > limit:
        return count
    while low < high:
        middle = (low + high) // 2
        if loss_of(middle) <= limit:
            high = middle
        else:
            low = middle + 1
    return high
