"""The ways to quantise a model: each is a function from its trace to the graph of a variant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from kiara.console import logger, progress
from kiara.data import Split
from kiara.grid import Grid
from kiara.model import GPT, Linear
from kiara_export.candidates.orders import LossOf, Made, Order, Texts
from kiara_export.graph import graph_bytes, lower, save, trace
from kiara_export.quantize import (
    SHARE,
    Blocks,
    Mixed,
    block_size,
    calibrate_int4,
    costly,
    fewest,
    rounded,
    smoothing,
)
from kiara_runtime.bundle import FLOAT32, GRAPH_FOLDER, Rounding, Variant
from kiara_runtime.errors import UserError

ROTARY_MULTIPLE = 16  # of the rotated dimensions, in GroupQueryAttention


@dataclass(frozen=True)
class Material:
    """Inputs of a maker. traced: the trace of `model`. path: where to write trial graphs and, last, the final one.
    loss_of: measures the loss of a trial graph.
    """

    model: GPT
    traced: ir.Model
    calibrate: Split | None
    path: Path
    loss_of: Callable[[Path], float]

    @property
    def text(self) -> Split:
        assert self.calibrate is not None, "a calibrated variant needs calibration text"
        return self.calibrate


Maker = Callable[[Material, Order], tuple[ir.Model, tuple[str, ...]]]  # -> graph, names of matrices kept at 8 bits


class Workshop:
    """Makes the graphs in a folder. load: returns the model; `make` calls it each time, as makers may modify it.

    hidden: the graphs have the hidden states as an output.
    """

    def __init__(self, folder: Path, load: Callable[[], GPT], texts: Texts, loss_of: LossOf, hidden: bool) -> None:
        self._folder, self._load, self._texts, self._loss_of = folder, load, texts, loss_of
        self._hidden = hidden

    def make(self, orders: list[Order], float32: Path) -> dict[Variant, Made]:
        """Make the graph of each order. float32: path of the baseline graph, written if it does not exist yet."""
        (self._folder / GRAPH_FOLDER).mkdir(exist_ok=True)
        model = self._load()
        with progress("Tracing the graph", 1) as advance:
            traced = trace(model, self._hidden)
            advance(1)
        if not float32.exists():
            save(lower.float32(traced), float32, apart=float32 != self._folder / FLOAT32.file)
        made = {order.variant: Made(float32) for order in orders if order.variant.lossless}
        rounded = [order for order in orders if not order.variant.lossless]
        # GPTQ goes last: it modifies the model's weights.
        for order in sorted(rounded, key=lambda order: order.variant.rounding == "gptq"):
            path = self._folder / order.variant.file
            material = Material(model, traced, self._texts.calibrate, path, partial(self._loss_of, float32))
            graph, eight_bit = MAKERS[order.variant.rounding](material, order)
            save(graph, path)
            made[order.variant] = Made(path, eight_bit)
        return made


def _half(material: Material, order: Order) -> tuple[ir.Model, tuple[str, ...]]:
    return lower.half(material.traced), ()


def _blocks(material: Material, order: Order) -> tuple[ir.Model, tuple[str, ...]]:
    """Each attempt takes blocks half as large. What was trained on the grid is not rounded at all."""
    return _lowered(material.traced, order, _rounded(order)), ()


def _dynamic(material: Material, order: Order) -> tuple[ir.Model, tuple[str, ...]]:
    """Quantise activations too; each attempt quarters the loss they may cause, so that more matrices stay in blocks.

    A model that was trained for it is neither smoothed nor rounded, and no matrix stays in blocks.
    """
    matrices = material.model.matrices().items()
    if all(Grid.for_matrix(order.variant, name, weight.shape[1]).holds(weight) for name, weight in matrices):
        logger.info("%s: the model was trained on this grid, no weight is rounded", order.variant.name)
        return lower.dynamic(material.traced, _rounded(order), {}), ()
    factors = smoothing(material.model, material.text)
    kept = costly(material.model, material.text, factors, SHARE / 4**order.attempt)
    logger.info("%s keeps %d matrices in blocks: %s", order.variant.name, len(kept), " ".join(sorted(kept)))
    return lower.dynamic(material.traced, _rounded(order), factors, kept), ()


def _gptq(material: Material, order: Order) -> tuple[ir.Model, tuple[str, ...]]:
    """With as many matrices at 8 bits as the budget allows, or as few as the loss needs; else none.

    A model that was trained on the grid is not rounded at all, and its tables have four bits, too.
    """
    if all(Grid.of(order.variant).holds(weight) for weight in material.model.matrices().values()):
        logger.info("%s: the model was trained on this grid, nothing is rounded", order.variant.name)
        return lower.blocks(material.traced, _rounded(order)), ()
    with progress(f"Calibrating {order.variant.name}", len(material.model.layers)) as advance:
        mixed = Mixed(calibrate_int4(material.model, material.text, order.variant.blocks, order.searches, advance))

    def graph(promoted: int) -> ir.Model:
        return lower.blocks(material.traced, mixed.rounded(promoted))

    def size_of(promoted: int) -> int:
        save(graph(promoted), material.path)
        return graph_bytes(material.path)

    def loss_with(promoted: int) -> float:
        save(graph(promoted), material.path)
        loss = material.loss_of(material.path)
        told = order.variant.name, promoted, len(mixed), 100 * loss
        logger.info("%s with %d of %d matrices at 8 bits loses %.2f%%", *told)
        return loss

    most = len(mixed) if order.budget is None else mixed.within(size_of(0), order.budget)
    promoted = most if order.searches else 0
    if order.max_loss is not None:
        promoted = fewest(most, loss_with, order.max_loss)
    return _lowered(material.traced, order, mixed.rounded(promoted)), tuple(mixed.eight(promoted))


MAKERS: dict[Rounding, Maker] = {
    "half": _half,
    "blocks": _blocks,
    "dynamic": _dynamic,
    "gptq": _gptq,
}


def _rounded(order: Order) -> lower.Rounded:
    grid = Grid(order.variant.bits, order.variant.blocks[order.attempt :])
    return lambda name, weight: rounded(grid, weight)


def _lowered(traced: ir.Model, order: Order, rounding: lower.Rounded) -> ir.Model:
    """The graph in blocks; tells how many matrices were not rounded, as they came in such blocks."""
    kept: list[bool] = []

    def noted(name: str, weight: NDArray[np.float32]) -> Blocks:
        made = rounding(name, weight)
        kept.append(made.kept)
        return made

    graph = lower.blocks(traced, noted)
    if any(kept):
        logger.info(
            "%s: %d of %d matrices keep the blocks that they came with", order.variant.name, sum(kept), len(kept)
        )
    return graph


def check_widths(model: GPT, variants: list[Variant]) -> None:
    """Raise UserError, before any work, for widths that ONNX Runtime's attention or a variant's blocks cannot have."""
    config = model.config
    turned = config.rotary_dim or config.head_dim
    if config.position == "rope" and turned % ROTARY_MULTIPLE:
        remedy = f"ONNX Runtime needs a multiple of {ROTARY_MULTIPLE}, so export another model"
        raise UserError("model", f"rotates {turned} of the {config.head_dim} dimensions of a head", remedy)
    for blocks in {variant.blocks for variant in variants if variant.blocks}:
        for part in model.modules():
            if isinstance(part, Linear):
                block_size(part.in_features, blocks)


def reference_path(folder: Path, variants: list[Variant]) -> Path:
    """Path of the float32 graph while other variants are judged: the fp32 variant's own, or a temporary one."""
    return folder / (FLOAT32.file if FLOAT32 in variants else f"{GRAPH_FOLDER}/float32.onnx")
