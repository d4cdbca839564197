"""Curves of runs, as a picture in the run folder and as SVG in the page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kiara.report.records import Record, RunRecords

COLOURS = ("#1f5fa8", "#c8501e", "#2f7d4f", "#7a4ea3", "#8a6d1b", "#a83263")
BINS = 60  # means of a noisy curve
QUANTISED = ("int8", "int4", "int2")


def plot_run(name: str, metrics: list[Record], out: Path) -> None:
    """Draw training and validation loss over the steps into the PNG file `out`."""
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    draw_loss(figure.subplots(), [RunRecords(name, metrics, [], {}, None)])
    figure.axes[0].set_title(name, loc="left", parse_math=False)
    figure.savefig(out)


def draw_loss(axes: Axes, runs: Sequence[RunRecords]) -> None:
    """Each batch's loss as a faint point, their means in bins, validation as dots on a line."""
    highest = 0.0
    for run, colour in zip(runs, _colours(runs), strict=True):
        steps, losses = run.curve("loss")
        axes.plot(steps, losses, ".", color=colour, alpha=0.12, markersize=3, markeredgewidth=0)
        axes.plot(*_means(steps, losses), color=colour, alpha=0.55, linewidth=1.2, label=_label(runs, run, "training"))
        at, values = run.curve("val_loss")
        axes.plot(at, values, "o-", color=colour, markersize=4, label=_label(runs, run, "validation"))
        for variant in QUANTISED:
            at, rounded = run.curve(f"{variant}_val_loss")
            if at:
                label = _label(runs, run, f"validation, rounded to {variant}")
                axes.plot(at, rounded, "s--", color=colour, markersize=3.5, linewidth=1, label=label)
        for step in run.resumed:
            axes.axvline(step, color=colour, alpha=0.35, linewidth=0.8, linestyle=":")
        highest = max([highest, *losses[:1]])
    if any(run.resumed for run in runs):
        axes.plot([], [], ":", color="#777777", label="resumed")
    _finish(axes, "loss, nats a token")
    axes.legend(frameon=False, fontsize="small", loc="upper right")


def draw(axes: Axes, runs: Sequence[RunRecords], name: str, label: str, noisy: bool = False, log: bool = False) -> None:
    """One figure of each run; of a noisy one, faint points and means in bins."""
    for run, colour in zip(runs, _colours(runs), strict=True):
        steps, values = run.curve(name)
        if noisy:
            axes.plot(steps, values, ".", color=colour, alpha=0.12, markersize=3, markeredgewidth=0)
            axes.plot(*_means(steps, values), color=colour, linewidth=1.4)
        else:
            axes.plot(steps, values, "o-" if len(steps) < BINS else "-", color=colour, markersize=4, linewidth=1.4)
    if log:
        axes.set_yscale("log")
    _finish(axes, label)


def svg(figure: Figure) -> str:
    """The figure as an SVG element, the same bytes for the same figure."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    element = text.getvalue()[text.getvalue().index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)


def _finish(axes: Axes, label: str) -> None:
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _colours(runs: Sequence[RunRecords]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(runs))]


def _label(runs: Sequence[RunRecords], run: RunRecords, what: str) -> str:
    return what if len(runs) == 1 else f"{run.name}: {what}"


def _means(steps: Sequence[int], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means over bins of steps, each at its bin's middle: such a line does not lag behind the curve."""
    groups = [group for group in np.array_split(np.arange(len(steps)), BINS) if len(group)]
    at, of = np.array(steps, float), np.array(values, float)
    return [float(at[group].mean()) for group in groups], [float(of[group].mean()) for group in groups]
