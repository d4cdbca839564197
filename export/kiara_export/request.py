"""The options of an export, checked before any work."""

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
    """The options of an export.

    variants: names of the variants to make. text: source of held-out text, by default the run's validation split;
    calibration: source of the text to calibrate and choose on, by default its training split. budget: bytes of the
    graph of mixed widths. max_bpb_loss: allowed relative loss of bits per byte, by variant; a single number applies to
    all lossy variants, but if there are several it can only lower their limits. strict: raise an error if a variant
    fails its limits, instead of remaking it or leaving it out. check_with: names in CHECKS. sign_key: a PEM file with
    an Ed25519 private key. embeddings: give the graphs the output that `kiara-run embed` needs.
    """

    variants: tuple[str, ...] = (VARIANTS[0].name,)
    text: str | None = None
    calibration: str | None = None
    budget: int | None = None
    max_bpb_loss: float | Mapping[str, float] = field(default_factory=dict[str, float])
    strict: bool = False
    check_with: tuple[str, ...] = ()
    sign_key: Path | None = None
    embeddings: bool = False

    def orders(self) -> list[Order]:
        """An order for each variant; raises UserError for unknown names and options that do not fit together."""
        known = {variant.name: variant for variant in VARIANTS}
        for name in self.variants:
            if name not in known:
                raise UserError("--quantize", "is not a variant", f"use one of {', '.join(known)}", value=name)
        if not self.variants:
            raise UserError("--quantize", "no variant is given", f"use one of {', '.join(known)}")
        for name in self.check_with:
            if name not in CHECKS:
                raise UserError("--check-with", "is not a known runtime", f"use one of {', '.join(CHECKS)}", value=name)
        wanted = [variant for variant in VARIANTS if variant.name in self.variants]
        self._check_options(wanted)
        losses = self._losses(wanted)
        return [self._order(variant, losses.get(variant)) for variant in wanted]

    def _check_options(self, wanted: list[Variant]) -> None:
        mixed = _choices(variant for variant in VARIANTS if variant.mixed)
        first = next(variant.choice for variant in VARIANTS if variant.calibrated)
        calibrated = _choices(variant for variant in VARIANTS if variant.calibrated)
        if self.budget is not None and not any(variant.mixed for variant in wanted):
            raise UserError("--budget", f"applies only to {mixed}", f"add --quantize {mixed}")
        if self.calibration is not None and not any(variant.calibrated for variant in wanted):
            raise UserError("--calibration", f"applies only to {calibrated}", f"add --quantize {first}")

    def _losses(self, wanted: list[Variant]) -> dict[Variant, float]:
        lossy = [variant for variant in wanted if not variant.lossless]
        if not isinstance(self.max_bpb_loss, Mapping):
            if not lossy:
                raise UserError("--max-bpb-loss", "does not apply to float32", "add --quantize int8 or another")
            given = self.max_bpb_loss
            if len(lossy) == 1:
                return {lossy[0]: given}
            return {variant: min(given, variant.limits.bits_per_byte_loss) for variant in lossy}
        named = {variant.name: variant for variant in lossy}
        for name in self.max_bpb_loss:
            if name not in named:
                raise UserError(
                    "--max-bpb-loss", "is not a lossy variant of this export", f"add --quantize {name}", value=name
                )
        return {named[name]: loss for name, loss in self.max_bpb_loss.items()}

    def _order(self, variant: Variant, loss: float | None) -> Order:
        limits = variant.limits if loss is None else replace(variant.limits, bits_per_byte_loss=loss)
        if not variant.mixed:
            return Order(variant, limits)
        return Order(variant, limits, budget=self.budget, max_loss=loss)


def _choices(variants: Iterable[Variant]) -> str:
    return " and ".join(variant.choice for variant in variants)
