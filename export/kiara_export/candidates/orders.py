"""Input and output of a maker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from kiara.data import Split
from kiara_export.proof import Shortfall
from kiara_runtime.bundle import Limits, Variant


@dataclass(frozen=True)
class Texts:
    """The texts of an export, which do not overlap unless the user passes the same one twice.

    report: held-out text for judging variants and for the receipt's figures. calibrate: calibration text. choose: text
    for choosing which matrices keep 8 bits. The last two are None if no variant needs them.
    """

    report: Split
    calibrate: Split | None = None
    choose: Split | None = None


@dataclass(frozen=True)
class Order:
    """A variant to make. attempt: from 0; each uses finer rounding than the one before. limits: on its losses.

    budget: bytes of its graph file; max_loss: relative loss of bits per byte on `Texts.choose`. In a variant of mixed
    widths, as many matrices keep 8 bits as the budget allows, or as few as max_loss requires.
    """

    variant: Variant
    limits: Limits
    attempt: int = 0
    budget: int | None = None
    max_loss: float | None = None

    @property
    def searches(self) -> bool:
        return self.variant.mixed and (self.budget is not None or self.max_loss is not None)

    def finer(self, why: Shortfall, loss: float) -> Order | None:
        """The next attempt at a variant that failed a limit; None if no attempt is left, or if there is a budget, which
        the first attempt has already used up.

        loss: measured relative loss of bits per byte. A variant of mixed widths is made again with the limit as its
        target on `Texts.choose`; if it already had a target, that is lowered in proportion to the excess.
        """
        if self.attempt + 1 >= self.variant.attempts or self.budget is not None:
            return None
        if not self.variant.mixed:
            return replace(self, attempt=self.attempt + 1)
        allowed = self.limits.bits_per_byte_loss
        target = allowed if self.max_loss is None else self.max_loss * allowed / max(loss, allowed)
        if why.field != "bits_per_byte_loss":
            target = min(target, max(0.0, loss / 2))
        return replace(self, attempt=self.attempt + 1, max_loss=target)


@dataclass(frozen=True)
class Made:
    """The graph of an order on disk. eight_bit: in a variant of mixed widths, names of the matrices kept at 8 bits."""

    path: Path
    eight_bit: tuple[str, ...] = ()


# Paths of the float32 graph and of another -> the other's relative loss of bits per byte on `Texts.choose`
LossOf = Callable[[Path, Path], float]
