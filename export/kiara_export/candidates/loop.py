"""Make and judge variants. One that fails its limits is remade with finer rounding, and left out if it still fails."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kiara.console import logger, progress
from kiara.evaluation import Metrics
from kiara.training import give_back_memory
from kiara_export.candidates.makers import Workshop, reference_path
from kiara_export.candidates.orders import Made, Order
from kiara_export.graph import drop
from kiara_export.proof import (
    MANY,
    Agreement,
    Judge,
    Quality,
    Reference,
    Shortfall,
    shortfall,
    verify_float32,
    worst_layer,
)
from kiara_runtime.bundle import FLOAT32, Architecture, Variant
from kiara_runtime.engine import Session
from kiara_runtime.errors import UserError
from kiara_runtime.verify import path_agreement, probe

MAPPED = {"session.disable_prepacking": "1"}  # float32 is only the baseline here; prepacking would copy its weights


@dataclass
class Verdict:
    """Results of an export. made: graphs of the accepted variants. left_out: names of the rejected ones, with reasons.

    float32: metrics of the float32 graph; agreements: its paths compared with PyTorch. qualities, probes: by variant.
    finer: for each variant that was remade, how many times.
    """

    agreements: list[Agreement]
    probes: dict[Variant, Any]
    made: dict[Variant, Made] = field(default_factory=dict[Variant, Made])
    float32: Metrics | None = None
    qualities: dict[Variant, Quality] = field(default_factory=dict[Variant, Quality])
    finer: dict[str, int] = field(default_factory=dict[str, int])
    left_out: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def variants(self) -> list[Variant]:
        return list(self.made)


@dataclass(frozen=True)
class Candidates:
    """Makes and judges variants. shape: of their graphs. reference: PyTorch's outputs to compare with."""

    folder: Path
    workshop: Workshop
    shape: Architecture
    judge: Judge
    reference: Reference

    def accept(self, orders: list[Order], strict: bool) -> Verdict:
        """Make and judge the variants and keep those within their limits; fall back to float32 if none is.

        Raises UserError if the float32 graph is wrong or, if `strict`, if a variant fails its limits.
        """
        wanted = [order.variant for order in orders]
        float32 = reference_path(self.folder, wanted)
        made = self._make(orders, float32)
        verdict = self._begin(float32)
        waiting = {order.variant: order for order in orders if not order.variant.lossless}
        missed = self._judge(verdict, float32, made, list(waiting.values()))
        if strict and missed:
            variant, why = next(iter(missed.items()))
            remedy = f"no bundle was written; leave out {variant.name}, or --strict"
            raise UserError("verification", f"{variant.name} {why.problem}", remedy)
        while again := self._next(verdict, waiting, missed):
            waiting.update({order.variant: order for order in again})
            made |= self._make(again, float32)
            left = {variant: why for variant, why in missed.items() if waiting[variant] not in again}
            missed = left | self._judge(verdict, float32, made, again)
        for variant, why in missed.items():
            self._leave_out(verdict, made.pop(variant), variant, why)
        if FLOAT32 not in wanted:
            drop(float32)
        verdict.made = {variant: made[variant] for variant in wanted if variant in made}
        if not verdict.made:
            logger.warning("Every requested variant was left out, so the bundle contains fp32, the unquantised model")
            verdict.made = self._make([Order(FLOAT32, FLOAT32.limits)], self.folder / FLOAT32.file)
        return verdict

    def _make(self, orders: list[Order], float32: Path) -> dict[Variant, Made]:
        made = self.workshop.make(orders, float32)
        give_back_memory()  # judging the graphs does not need the PyTorch model
        return made

    def _begin(self, float32: Path) -> Verdict:
        """Compare the float32 graph with PyTorch: it is the baseline for all other variants."""
        session = self._session(float32, MAPPED)
        agreements = verify_float32(session, self.reference)
        return Verdict(agreements, {FLOAT32: probe(session, self.reference.windows[0])})

    def _judge(
        self, verdict: Verdict, float32: Path, made: dict[Variant, Made], orders: list[Order]
    ) -> dict[Variant, Shortfall]:
        """Measure these variants against float32; return the failed limit of each variant that fails one."""
        base = self._session(float32, MAPPED)
        sessions = {order.variant: self._session(made[order.variant].path) for order in orders}
        with progress("Verifying", self.judge.tokens) as advance:
            verdict.float32, compared = self.judge.measure(base, sessions, advance)
        missed: dict[Variant, Shortfall] = {}
        for order in orders:
            variant, session = order.variant, sessions[order.variant]
            paths = path_agreement(session, self.reference.texts)
            quality = verdict.qualities[variant] = compared[variant].quality(verdict.float32, paths)
            verdict.probes[variant] = probe(session, self.reference.windows[0])
            if (why := shortfall(quality, order.limits)) is not None:
                missed[variant] = replace(why, problem=f"{why.problem} ({worst_layer(base, session, self.reference)})")
        return missed

    def _next(self, verdict: Verdict, orders: dict[Variant, Order], missed: dict[Variant, Shortfall]) -> list[Order]:
        """Orders for the variants to remake."""
        again: list[Order] = []
        for variant, why in missed.items():
            order = orders[variant].finer(why, verdict.qualities[variant].bits_per_byte_loss)
            if order is not None:
                logger.warning("%s %s: remaking it with finer rounding", variant.name, why.problem)
                verdict.finer[variant.name] = order.attempt
                again.append(order)
        return again

    def _leave_out(self, verdict: Verdict, made: Made, variant: Variant, why: Shortfall) -> None:
        more = "; --max-bpb-loss sets a higher limit" if why.field == "bits_per_byte_loss" else ""
        logger.warning("%s %s: leaving it out%s", variant.name, why.problem, more)
        drop(made.path)
        del verdict.qualities[variant], verdict.probes[variant]
        verdict.finer.pop(variant.name, None)
        verdict.left_out[variant.name] = why.problem

    def _session(self, path: Path, settings: dict[str, str] | None = None) -> Session:
        """Open a graph with the settings for several sessions in one process."""
        return Session(path, self.shape, settings={**MANY, **(settings or {})})
