"""The graphs of a bundle on disk, all lowered from one trace of one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kiara.console import logger, progress
from kiara.data.dataset import Split
from kiara.model import sizes
from kiara.model.gpt import GPT, Linear
from kiara_export.graph import lower
from kiara_export.graph.onnx_file import graph_bytes, save
from kiara_export.graph.trace import trace
from kiara_export.proof.judge import MANY
from kiara_export.quantize.blocks import BLOCK_SIZES, Blocks, block_size, round_int8
from kiara_export.quantize.gptq import calibrate_int4
from kiara_export.quantize.mixed import Mixed, fewest, over_budget
from kiara_export.quantize.smooth import SHARE, Factors, costly, smoothing
from kiara_runtime.bundle.manifest import GRAPH_FOLDER, VARIANT_FILES, Architecture
from kiara_runtime.engine.session import Session

FLOAT32 = "float32.onnx"  # what the others are measured against, where fp32 itself is not asked for
CALIBRATED = {"int4", "int8-dynamic"}  # the variants that need text
MAPPED = {"session.disable_prepacking": "1"}


@dataclass(frozen=True)
class Limit:
    """What int4 may weigh or lose; the matrices that make it hold 8 bits are chosen by sensitivity.

    budget: bytes of its graph file. max_bpb_loss: relative loss of bits per byte, for every variant the bar.
    """

    budget: int | None = None
    max_bpb_loss: float | None = None

    def searches(self) -> bool:
        return self.budget is not None or self.max_bpb_loss is not None


@dataclass(frozen=True)
class Graphs:
    """paths: of each variant's file, and of float32's, asked for or not. eight: int4's matrices that keep 8 bits."""

    paths: dict[str, Path]
    eight: list[str]

    def session(self, name: str, shape: Architecture) -> Session:
        """One of several in a process. float32, which only measures the others, copies none of its mapped weights."""
        return Session(self.paths[name], shape, settings={**MANY, **(MAPPED if name == "fp32" else {})})


def write_graphs(
    folder: Path,
    model: GPT,
    names: list[str],
    calibration: Split | None,
    limit: Limit,
    loss_of: Callable[[Path, Path], float],
    finer: int = 0,
) -> Graphs:
    """Write the graphs of `names`, and float32's, below `folder`. The weights of `model` are rounded on the way.

    loss_of: relative loss of bits per byte of the second graph against the first, a float32 one. finer: how often
    these variants have cost too much so far; each time blocks are half as large, and int8-dynamic rounds no more
    activations than in a quarter as many matrices.
    """
    (folder / GRAPH_FOLDER).mkdir(exist_ok=True)
    paths = {name: folder / VARIANT_FILES[name] for name in names}
    paths.setdefault("fp32", folder / GRAPH_FOLDER / FLOAT32)
    with progress("Tracing the graph", 1) as advance:
        traced = trace(model)
        advance(1)
    save(lower.float32(traced), paths["fp32"], apart="fp32" not in names)
    factors, kept = Factors(), set[str]()
    if "int8-dynamic" in names and calibration is not None:
        factors = smoothing(model, calibration)
        kept = costly(model, calibration, factors, SHARE / 4**finer)
        logger.info("int8-dynamic keeps %d matrices in blocks: %s", len(kept), " ".join(sorted(kept)))

    def rounded(name: str, weight: NDArray[np.float32]) -> Blocks:
        return round_int8(weight, BLOCK_SIZES[finer])

    makers = {
        "fp16": lower.half,
        "int8": lambda graph: lower.blocks(graph, rounded),
        "int8-dynamic": lambda graph: lower.dynamic(graph, rounded, factors, kept),
    }
    for name, make in makers.items():
        if name in names:
            save(make(traced), paths[name])
    if "int4" not in names:
        return Graphs(paths, [])
    assert calibration is not None
    with progress("Calibrating int4", len(model.layers)) as advance:
        mixed = Mixed(calibrate_int4(model, calibration, limit.searches(), advance))

    def write(promoted: int) -> int:
        save(lower.blocks(traced, mixed.rounded(promoted)), paths["int4"])
        return graph_bytes(paths["int4"])

    def loss_with(promoted: int) -> float:
        write(promoted)
        loss = loss_of(paths["fp32"], paths["int4"])
        logger.info("int4 with %d of %d matrices at 8 bits loses %.2f%%", promoted, len(mixed), 100 * loss)
        return loss

    most = len(mixed) if limit.budget is None else mixed.within(write(0), limit.budget)
    if limit.max_bpb_loss is not None:
        promoted = fewest(most, loss_with, limit.max_bpb_loss)
    else:
        promoted = 0 if limit.budget is None else most
    write(promoted)
    return Graphs(paths, mixed.eight(promoted))


def check_widths(model: GPT, names: list[str]) -> None:
    """Refuse, before any work, matrices that no variant of `names` can hold in blocks."""
    if set(names) - {"fp32", "fp16"}:
        for part in model.modules():
            if isinstance(part, Linear):
                block_size(part.in_features)


def check_budget(model: GPT, limit: Limit) -> None:
    """Refuse, before any work, a budget below the bare weights of int4."""
    if limit.budget is not None and (least := sizes.bundle_bytes(model.config, model.vocab_size, 4)) > limit.budget:
        raise over_budget(least, limit.budget)


def architecture(model: GPT) -> Architecture:
    """What the runtime must know of the graph of `model`."""
    config = model.config
    return Architecture(
        num_hidden_layers=config.num_hidden_layers,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        context_length=config.context_length,
        vocab_size=model.vocab_size,
    )
