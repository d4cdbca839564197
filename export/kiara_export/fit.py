"""Propose a model's shape for a device: as many parameters as a budget of bytes and time allows.

The time of a decode step on this machine is measured, with real graphs of random weights. It is taken as a time for
each step, one for each layer and one for each byte of weights; then the proposal itself is built and measured, and the
times are corrected by it until it fits.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from kiara.config import Config, ModelConfig, TrainingConfig
from kiara.console import logger
from kiara.grid import Grid
from kiara.model import GPT, sizes
from kiara_export.graph import graph_bytes, lower, save, trace
from kiara_export.pipeline import architecture
from kiara_export.quantize import round_to
from kiara_runtime.bundle import Variant, find_variant
from kiara_runtime.engine import Session
from kiara_runtime.errors import UserError

SHAPE = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
)  # fmt: skip
LARGEST = 400_000_000  # parameters
ASPECT = 48  # width of a model of usual shape, for each of its layers
FILES, ENTRY = 100_000, 45  # bytes of a bundle's small files, and of an entry in its tokenizer's
MARGIN = 0.97  # of the time: what is measured varies by about as much
STEPS, ROUNDS, ATTEMPTS = 24, 5, 4
NARROWEST = 128  # width for which learning rates have been measured
_FORM = "write a size, a time or a speed, such as '30MB, 20 ms a token' or '50 tokens/s'"


@dataclass(frozen=True)
class Budget:
    """bytes: of the bundle. seconds: of a decode step. None is no limit."""

    bytes: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """A budget such as `30MB, 20 ms a token`; raises UserError for anything else."""
        budget = cls()
        for part in text.split(","):
            if found := re.fullmatch(r"\s*(\d*\.?\d+)\s*([kMG])B\s*", part):
                given = cls(bytes=round(float(found[1]) * {"k": 1e3, "M": 1e6, "G": 1e9}[found[2]]))
            elif found := re.fullmatch(r"\s*(\d*\.?\d+)\s*ms(?:\s*(?:a|per|/)\s*token)?\s*", part):
                given = cls(seconds=float(found[1]) / 1e3)
            elif found := re.fullmatch(r"\s*(\d*\.?\d+)\s*tokens?\s*(?:a|per|/)\s*s(?:econd)?\s*", part):
                given = cls(seconds=1 / max(1e-9, float(found[1])))
            else:
                raise UserError("--fit", "is not a budget", _FORM, value=text)
            if (given.bytes and budget.bytes) or (given.seconds and budget.seconds) or float(found[1]) == 0:
                raise UserError("--fit", "gives a limit twice, or of 0", _FORM, value=text)
            budget = cls(given.bytes or budget.bytes, given.seconds or budget.seconds)
        return budget


@dataclass(frozen=True)
class Shape:
    """A model of a shape, and what ships of it."""

    model: ModelConfig
    vocab_size: int
    variant: Variant
    trained: bool  # on the variant's grid, which its tables have then, too

    @property
    def parameters(self) -> int:
        return sizes.parameters(self.model, self.vocab_size)

    @property
    def weights(self) -> int:
        """Bytes of the graph without its structure."""
        return sizes.graph_bytes(self.model, self.vocab_size, self.variant, self.trained)

    @property
    def bundle(self) -> int:
        """About the bytes of the bundle, a little more rather than less."""
        return round(1.002 * self.weights) + FILES + 6_000 * self.model.num_hidden_layers + ENTRY * self.vocab_size

    def settings(self) -> dict[str, float]:
        """The settings of the shape, by dotted path."""
        shape = {f"model.{name}": getattr(self.model, name) for name in SHAPE}
        return {**shape, "tokenizer.vocab_size": self.vocab_size}


@dataclass(frozen=True)
class Costs:
    """Seconds of a decode step: for itself, for each layer, for each byte of weights."""

    step: float
    layer: float
    byte: float

    def of(self, shape: Shape) -> float:
        return self.step + self.layer * shape.model.num_hidden_layers + self.byte * shape.weights

    def times(self, factor: float) -> Costs:
        return Costs(self.step * factor, self.layer * factor, self.byte * factor)


def fit(budget: Budget, config: Config, vocab_size: int | None = None) -> Shape:
    """The largest model within the budget, measured on this machine.

    config: all settings beside the shape; what ships is the variant that it trains for, or int8. vocab_size: where it
    is given. Raises UserError if nothing is small enough.
    """
    trained_for = find_variant(config.training.quantize)
    if trained_for and trained_for.rounding == "dynamic":
        problem, remedy = "is not measured by --fit", "use int8, whose size is about the same"
        raise UserError("training.quantize", problem, remedy, value=trained_for.name)
    variant = trained_for or find_variant("int8")
    assert variant is not None
    shapes = [*_shapes(config.model, vocab_size, variant, trained_for is not None)]
    shape = (
        _largest(shapes, budget, None) if budget.seconds is None else _fastest_enough(shapes, budget, budget.seconds)
    )
    found = shape.model
    logger.info(
        "Fits: hidden_size %d, %d layers, %d heads (%d for keys and values), vocabulary %d; %.1fM parameters, "
        "bundle at %s about %.1f MB.",
        found.hidden_size, found.num_hidden_layers, found.num_attention_heads, found.num_key_value_heads,
        shape.vocab_size, shape.parameters / 1e6, variant.name, shape.bundle / 1e6,
    )  # fmt: skip
    step = config.training.sequences * found.context_length
    logger.info(
        "The configured %d steps are %.1f tokens a parameter; 20 a parameter, a usual amount, are %s steps.",
        config.training.max_steps, config.training.max_steps * step / shape.parameters,
        f"{round(20 * shape.parameters / step):,}",
    )  # fmt: skip
    return shape


def _fastest_enough(shapes: list[Shape], budget: Budget, seconds: float) -> Shape:
    """The largest shape whose step was measured to take so many seconds at most."""
    costs, best = _measured_costs(shapes[0]), None
    for _ in range(ATTEMPTS):
        shape = _largest(shapes, budget, costs)
        predicted, measured = costs.of(shape), step_seconds(shape)
        logger.info(
            "%.1fM parameters: %.2f ms a token predicted, %.2f ms measured on this machine.",
            shape.parameters / 1e6, 1e3 * predicted, 1e3 * measured,
        )  # fmt: skip
        if measured <= seconds and (best is None or best.parameters < shape.parameters):
            best = shape
        if best is shape and measured >= 0.9 * predicted:
            break
        costs = costs.times(measured / predicted)
    if best is None:
        problem = f"no model kept to {1e3 * seconds:.3g} ms a token; other programs may be using the cores"
        raise UserError("--fit", problem, "close them, or allow more")
    return best


def rates(model: ModelConfig, training: TrainingConfig) -> dict[str, float]:
    """Learning rates for a width, of those that are not set: the defaults' times the root of the ratio of widths."""
    factor = (ModelConfig().hidden_size / max(model.hidden_size, NARROWEST)) ** 0.5
    names = ("learning_rate", "embedding_learning_rate")
    return {
        f"training.{name}": round(factor * getattr(training, name), 5)
        for name in names
        if name not in training.model_fields_set
    }


def _largest(shapes: list[Shape], budget: Budget, costs: Costs | None) -> Shape:
    """The shape with most parameters within the budget; of equals, the one of most usual proportions."""
    limit = float("inf") if budget.seconds is None else MARGIN * budget.seconds
    fitting = [
        shape
        for shape in shapes
        if (budget.bytes is None or shape.bundle <= budget.bytes) and (costs is None or costs.of(shape) <= limit)
    ]
    if not fitting:
        least = min(shapes, key=lambda shape: shape.bundle)
        needs = f"{least.bundle / 1e6:.2f} MB" + (
            "" if costs is None else f" and {1e3 * costs.of(least):.2g} ms a token"
        )
        raise UserError("--fit", f"the smallest model needs {needs}", "allow more")
    return max(fitting, key=lambda shape: (shape.parameters, -_stretch(shape.model)))


def _stretch(model: ModelConfig) -> float:
    """How far the proportions are from usual ones."""
    return abs(np.log(model.hidden_size / model.num_hidden_layers / ASPECT))


def _shapes(model: ModelConfig, vocab_size: int | None, variant: Variant, trained: bool) -> Iterator[Shape]:
    """Shapes of all sizes: widths of whole heads, and layers about a fifth more or less than usual."""
    for width in range(64, 2049, 64):
        usual, heads = width / ASPECT, width // 64
        groups = max(part for part in range(1, max(1, heads // 2) + 1) if heads % part == 0)
        for layers in range(max(2, round(0.8 * usual)), max(2, round(1.25 * usual)) + 1):
            shaped = model.model_copy(
                update={
                    "hidden_size": width,
                    "num_hidden_layers": layers,
                    "num_attention_heads": heads,
                    "num_key_value_heads": groups,
                    "head_dim": 64,
                    "intermediate_size": 4 * width,
                }
            )
            shape = Shape(shaped, vocab_size or _vocabulary(shaped), variant, trained)
            if shape.parameters <= LARGEST:
                yield shape


def _vocabulary(model: ModelConfig) -> int:
    """The largest of the usual ones whose table is at most a quarter of the other matrices."""
    most = sizes.matrix_parameters(model) / 4 / model.hidden_size
    return max([1024, *(1024 << power for power in range(1, 6) if 1024 << power <= most)])


def _measured_costs(like: Shape) -> Costs:
    """Solve for the three times from the steps of three models."""
    made = [_probe(like, width, layers) for width, layers in ((128, 2), (128, 12), (512, 4))]
    logger.info("Measuring decode steps on this machine.")
    rows = [[1.0, shape.model.num_hidden_layers, shape.weights] for shape in made]
    found = np.linalg.solve(np.array(rows), np.array([step_seconds(shape) for shape in made]))
    return Costs(*(max(0.0, float(value)) for value in found))


def _probe(like: Shape, width: int, layers: int) -> Shape:
    update = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 4 * width}
    heads = {"num_attention_heads": width // 64, "num_key_value_heads": max(1, width // 128)}
    return replace(like, model=like.model.model_copy(update={**update, **heads, "head_dim": 64}), vocab_size=2048)


def step_seconds(shape: Shape) -> float:
    """Seconds of a decode step, of a graph with random weights, all cores in use; of the fastest round, as other
    programs can only add to it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        session = _session(shape, path)
        decode = session.decoder()
        decode([1, 2, 3, 4])
        rounds: list[float] = []
        length = min(STEPS, (shape.model.context_length - 8) // ROUNDS)
        for _ in range(ROUNDS):
            started = time.perf_counter()
            for _ in range(length):
                decode([5])
            rounds.append((time.perf_counter() - started) / length)
    return min(rounds)


def _session(shape: Shape, path: Path) -> Session:
    model = GPT(shape.model, shape.vocab_size)
    model.initialise(0)
    with torch.no_grad():
        for weight in model.matrices().values():  # those that begin at 0 would be computed faster
            weight.normal_(std=0.02)
    grid = Grid.of(shape.variant)
    save(lower.blocks(trace(model), lambda name, weight: round_to(grid, weight)), path)
    logger.debug("%s: %d bytes, %d expected", shape.settings(), graph_bytes(path), shape.weights)
    return Session(path, architecture(model))
