"""What an export is asked for, checked before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from kiara_export.candidates import Order
from kiara_export.proof import CHECKS
from kiara_runtime.bundle import VARIANTS, Variant
from kiara_runtime.errors import UserError


@dataclass(frozen=True)
class Request:
    """variants: by their names. text, calibration: sources of held-out text, and of text to calibrate and to choose on,
    by default the validation and the training split of the run. budget: bytes of the graph whose matrices may be mixed.
    max_bpb_loss: relative loss of bits per byte, by variant; a number is for all of them, but loosens one only where it
    stands alone. strict: refuse where a variant costs too much, instead of making it finer or leaving it out.
    check_with: names out of CHECKS. sign_key: a PEM file with an Ed25519 private key.
    """

    variants: tuple[str, ...] = (VARIANTS[0].name,)
    text: str | None = None
    calibration: str | None = None
    budget: int | None = None
    max_bpb_loss: float | Mapping[str, float] = field(default_factory=dict[str, float])
    strict: bool = False
    check_with: tuple[str, ...] = ()
    sign_key: Path | None = None

    def orders(self) -> list[Order]:
        """What the request asks of the makers; raises UserError for what makes no sense."""
        known = {variant.name: variant for variant in VARIANTS}
        for name in self.variants:
            if name not in known:
                raise UserError("--quantize", "is no variant", f"use {', '.join(known)}", value=name)
        if not self.variants:
            raise UserError("--quantize", "no variant is asked for", f"use {', '.join(known)}")
        for name in self.check_with:
            if name not in CHECKS:
                raise UserError("--check-with", "is no runtime", f"use {', '.join(CHECKS)}", value=name)
        wanted = [variant for variant in VARIANTS if variant.name in self.variants]
        self._check_options(wanted)
        losses = self._losses(wanted)
        return [self._order(variant, losses.get(variant)) for variant in wanted]

    def _check_options(self, wanted: list[Variant]) -> None:
        mixed = _choices(variant for variant in VARIANTS if variant.mixed)
        first = next(variant.choice for variant in VARIANTS if variant.calibrated)
        calibrated = _choices(variant for variant in VARIANTS if variant.calibrated)
        if self.budget is not None and not any(variant.mixed for variant in wanted):
            raise UserError("--budget", f"is only for {mixed}", f"add --quantize {mixed}")
        if self.calibration is not None and not any(variant.calibrated for variant in wanted):
            raise UserError("--calibration", f"is only for {calibrated}", f"add --quantize {first}")

    def _losses(self, wanted: list[Variant]) -> dict[Variant, float]:
        lossy = [variant for variant in wanted if not variant.lossless]
        if not isinstance(self.max_bpb_loss, Mapping):
            if not lossy:
                raise UserError("--max-bpb-loss", "float32 loses nothing", "add --quantize int8 or another")
            given = self.max_bpb_loss
            if len(lossy) == 1:
                return {lossy[0]: given}
            return {variant: min(given, variant.limits.bits_per_byte_loss) for variant in lossy}
        named = {variant.name: variant for variant in lossy}
        for name in self.max_bpb_loss:
            if name not in named:
                raise UserError("--max-bpb-loss", "is not among the variants", f"add --quantize {name}", value=name)
        return {named[name]: loss for name, loss in self.max_bpb_loss.items()}

    def _order(self, variant: Variant, loss: float | None) -> Order:
        limits = variant.limits if loss is None else replace(variant.limits, bits_per_byte_loss=loss)
        if not variant.mixed:
            return Order(variant, limits)
        return Order(variant, limits, budget=self.budget, max_loss=loss)


def _choices(variants: Iterable[Variant]) -> str:
    return " and ".join(variant.choice for variant in variants)
