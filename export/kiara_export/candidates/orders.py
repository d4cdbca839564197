"""What is asked of a maker, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from kiara.data import Split
from kiara_export.proof import Shortfall
from kiara_runtime.bundle import Limits, Variant


@dataclass(frozen=True)
class Texts:
    """Three texts, apart unless the user names one twice. report: judges the variants, and is what the
    receipt tells of. calibrate: what rounding learns from. choose: which of a variant's matrices keep 8 bits. The
    latter two are None where no variant needs them.
    """

    report: Split
    calibrate: Split | None = None
    choose: Split | None = None


@dataclass(frozen=True)
class Order:
    """A variant to make. attempt: from 0; each is finer than the one before. limits: what it may cost.

    budget: bytes of its graph file; max_loss: relative loss of bits per byte on the text to choose by. Of a variant
    whose matrices may be mixed, as many keep 8 bits as the budget allows, or as few as the loss needs.
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
        """The next attempt at a variant that cost too much; None where there is none left.

        loss: of bits per byte, as it was judged. Where it is larger on this text than on that which the last attempt
        chose by, the next one aims as much lower. What a budget allows has been used already.
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
    """The graph of an order on disk. eight_bit: names of its matrices that keep 8 bits where others have fewer."""

    path: Path
    eight_bit: tuple[str, ...] = ()


# float32's graph, another one -> its relative loss of bits per byte on the text to choose by
LossOf = Callable[[Path, Path], float]
