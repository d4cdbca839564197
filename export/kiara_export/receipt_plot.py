"""The receipt as a plot: size, losses and speed of each variant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Figures = dict[str, dict[str, Any]]
BAR, SECOND = "#3a6ea5", "#9dbfdd"


def plot_receipt(figures: Figures, title: str, path: Path) -> None:
    """Write a PNG of four panels, with a bar for each variant."""
    figure = Figure(figsize=(10, 1.9 + 0.75 * len(figures)), dpi=120, layout="constrained")
    axes = figure.subplots(2, 2)
    names = list(figures)[::-1]
    shown = [figures[name] for name in names]
    _bars(axes[0, 0], names, [f["size_bytes"] / 1e6 for f in shown], "size, MB", "{:.2f}".format)
    _bars(
        axes[0, 1], names, [100 * f["bits_per_byte_loss"] for f in shown], "loss of bits per byte, %", "{:+.3f}".format
    )
    _divergence(axes[1, 0], names, shown)
    if all("decode_tokens_per_second" in f for f in shown):
        _speeds(axes[1, 1], names, shown)
    else:
        axes[1, 1].set_axis_off()
    figure.suptitle(title, parse_math=False)
    figure.savefig(path, metadata={"Software": None})


def _bars(axis: Axes, names: list[str], values: list[float], label: str, text: Callable[[float], str]) -> None:
    bars = axis.barh(names, values, color=BAR, height=0.6)
    axis.bar_label(bars, [text(value) for value in values], padding=3)
    axis.set_title(label, fontsize="medium")
    axis.margins(x=0.2)
    _plain(axis)


def _divergence(axis: Axes, names: list[str], shown: list[dict[str, Any]]) -> None:
    """Draw a bar from the median to the 99th percentile and a dot for the mean: a mean alone hides the tail."""
    axis.set_title("KL from fp32, nats a token: median to 99 %, mean", fontsize="medium")
    axis.set_yticks(range(len(names)), names)
    for row, f in enumerate(shown):
        if quantiles := f["kl_quantiles"]:
            axis.plot([max(1e-7, quantiles["0.5"]), max(1e-7, quantiles["0.99"])], [row, row], color=SECOND, lw=6)
            axis.plot(max(1e-7, f["kl"]), row, "o", color=BAR)
            axis.annotate(f"{f['kl']:.2g}", (max(1e-7, f["kl"]), row), (0, 8), textcoords="offset points", ha="center")
    axis.set_xscale("log")
    axis.set_ylim(-0.6, len(names) - 0.4)
    _plain(axis)


def _speeds(axis: Axes, names: list[str], shown: list[dict[str, Any]]) -> None:
    axis.set_title("tokens/s: prefill (light), decode (dark)", fontsize="medium")
    for offset, key, colour in ((0.2, "prefill_tokens_per_second", SECOND), (-0.2, "decode_tokens_per_second", BAR)):
        values = [f[key] for f in shown]
        bars = axis.barh([row + offset for row in range(len(names))], values, height=0.36, color=colour)
        axis.bar_label(bars, [f"{value:,.0f}" for value in values], padding=3)
    axis.set_yticks(range(len(names)), names)
    axis.margins(x=0.2)
    _plain(axis)


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
