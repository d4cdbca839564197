"""Which variants are good enough: judged, made finer where they cost too much, and at last left out, which is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from kiara.console import logger, progress
from kiara.data.dataset import Split
from kiara.evaluation.evaluate import Metrics
from kiara.model.gpt import GPT
from kiara.training.device import give_back_memory
from kiara_export.graph.onnx_file import drop
from kiara_export.proof.judge import LIMITS, Judge, Limits, Quality, Shortfall, shortfall, worst_layer
from kiara_export.proof.reference import Reference
from kiara_export.proof.verify import Agreement, verify_float32
from kiara_export.variants import Graphs, Limit, write_graphs
from kiara_runtime.bundle.manifest import Architecture
from kiara_runtime.errors import UserError
from kiara_runtime.verify.agreement import path_agreement
from kiara_runtime.verify.kernels import probe

RETRIES = {"int8": 2, "int8-dynamic": 2, "int4": 1}  # how often a variant is made again, finer


@dataclass
class Verdict:
    """What the graphs are worth. graphs: of the variants that are in, and float32's. left_out: the others, and why.

    float32: metrics of the float32 graph; agreements: of its paths with PyTorch. qualities, probes: by variant.
    finer: how often a variant was made again, of those that were.
    """

    graphs: Graphs
    agreements: list[Agreement]
    float32: Metrics | None = None
    qualities: dict[str, Quality] = field(default_factory=dict[str, Quality])
    probes: dict[str, Any] = field(default_factory=dict[str, Any])
    finer: dict[str, int] = field(default_factory=dict[str, int])
    left_out: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Candidates:
    """What variants are made from, and judged by. model: loads it anew, since rounding uses it up."""

    folder: Path
    model: Callable[[], GPT]
    shape: Architecture
    calibration: Split | None
    judge: Judge
    reference: Reference
    limit: Limit

    def write(self, names: list[str], finer: int = 0, int4_loss: float | None = None) -> Graphs:
        """The graphs of these variants, and float32's. finer: see write_graphs. int4_loss: what int4 is to lose."""
        limit = self.limit if int4_loss is None else replace(self.limit, max_bpb_loss=int4_loss)
        loss_of = partial(self.judge.loss_of_files, self.shape)
        graphs = write_graphs(self.folder, self.model(), names, self.calibration, limit, loss_of, finer)
        give_back_memory()  # the graphs are judged without the model
        return graphs

    def allowed(self, name: str) -> Limits:
        """What a variant may cost."""
        limits, loss = LIMITS[name], self.limit.max_bpb_loss
        return limits if loss is None else replace(limits, bits_per_byte_loss=loss)

    def retries(self, name: str) -> int:
        """How often it may be made again: int4 not where it has been searched for the loss that is allowed already."""
        return 0 if name == "int4" and self.limit.searches() else RETRIES.get(name, 0)

    def better_int4(self, why: Shortfall, loss: float) -> float:
        """The loss that int4 is to have when it is made again: what is allowed, or half where it had that already."""
        allowed = self.allowed("int4").bits_per_byte_loss
        return allowed if why.field == "bits_per_byte_loss" else min(allowed, max(0.0, loss / 2))


def accept(candidates: Candidates, names: list[str], strict: bool) -> Verdict:
    """Write and judge the variants; those that cost too much are made finer, and then left out.

    Where none is left there is float32. Raises UserError where float32's own graph is wrong, and, if `strict`,
    where a variant costs too much in its usual form.
    """
    verdict = _first(candidates, candidates.write(names))
    missed = _judge(candidates, verdict, [name for name in names if name != "fp32"])
    if strict and missed:
        name, why = next(iter(missed.items()))
        raise UserError(f"verification: {name} {why.what}; no bundle was written; leave out {name}, or --strict")
    for finer in range(1, max(RETRIES.values()) + 1):
        again = [name for name in missed if finer <= candidates.retries(name)]
        if not again:
            break
        for name in again:
            logger.warning("%s %s: it is made again, finer", name, missed[name].what)
            verdict.finer[name] = finer
        loss = None
        if "int4" in again:
            loss = candidates.better_int4(missed["int4"], verdict.qualities["int4"].bits_per_byte_loss)
        made = candidates.write(again, finer, loss)
        paths = {name: made.paths[name] for name in again}
        eight = made.eight if "int4" in again else verdict.graphs.eight
        verdict.graphs = Graphs({**verdict.graphs.paths, **paths}, eight)
        if verdict.graphs.paths["fp32"] != made.paths["fp32"]:
            drop(made.paths["fp32"])
        found = _judge(candidates, verdict, again)
        missed = {name: why for name, why in {**missed, **found}.items() if name not in again or name in found}
    for name, why in missed.items():
        _leave_out(verdict, name, why)
    if len(verdict.left_out) == len(names):
        _float32_instead(candidates, verdict)
    return verdict


def _first(candidates: Candidates, graphs: Graphs) -> Verdict:
    """Float32's graph against PyTorch, since everything else is measured against it."""
    float32 = graphs.session("fp32", candidates.shape)
    agreements = verify_float32(float32, candidates.reference)
    return Verdict(graphs, agreements, probes={"fp32": probe(float32, candidates.reference.windows[0])})


def _judge(candidates: Candidates, verdict: Verdict, names: list[str]) -> dict[str, Shortfall]:
    """Measure these variants beside float32; where each of those that cost too much does."""
    shape, judge, reference = candidates.shape, candidates.judge, candidates.reference
    sessions = {name: verdict.graphs.session(name, shape) for name in names}
    float32 = verdict.graphs.session("fp32", shape)
    with progress("Verifying", judge.tokens) as advance:
        verdict.float32, compared = judge.measure(float32, sessions, advance)
    missed: dict[str, Shortfall] = {}
    for name, session in sessions.items():
        paths = path_agreement(session, reference.texts)
        quality = verdict.qualities[name] = compared[name].quality(verdict.float32, paths)
        verdict.probes[name] = probe(session, reference.windows[0])
        if (why := shortfall(quality, candidates.allowed(name))) is not None:
            missed[name] = replace(why, what=f"{why.what} ({worst_layer(float32, session, reference)})")
    return missed


def _leave_out(verdict: Verdict, name: str, why: Shortfall) -> None:
    more = "; more is allowed with --max-bpb-loss" if why.field == "bits_per_byte_loss" else ""
    logger.warning("%s %s: it is left out%s", name, why.what, more)
    drop(verdict.graphs.paths.pop(name))
    del verdict.qualities[name], verdict.probes[name]
    verdict.finer.pop(name, None)
    verdict.left_out[name] = why.what


def _float32_instead(candidates: Candidates, verdict: Verdict) -> None:
    logger.warning("No other variant is left, so the bundle holds fp32, the model as it is")
    drop(verdict.graphs.paths["fp32"])
    verdict.graphs = candidates.write(["fp32"])
