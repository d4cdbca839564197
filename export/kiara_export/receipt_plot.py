"""The receipt as a plot: size, losses and speed of each variant, a row each, beside float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Figures = dict[str, dict[str, Any]]
# The colours of the server's page.
SURFACE, INK, MUTED, LINE, ACCENT, SOFT = "#ffffff", "#1d2126", "#59626c", "#d9dbd8", "#2c5d94", "#a9c3df"
ROW, HEAD, FOOT = 0.36, 0.52, 0.1  # inches
REFERENCE = "fp32"


def plot_receipt(figures: Figures, parameters: int, path: Path) -> None:
    """Write the plot as a PNG."""
    draw_receipt(figures, parameters).savefig(path, metadata={"Software": None})


def draw_receipt(figures: Figures, parameters: int) -> Figure:
    """Draw a row for each variant and a column for each figure. parameters: of the model.

    float32 is the first row, for comparison; if the bundle does not contain it, only its size is known.
    """
    reference = {REFERENCE: figures.get(REFERENCE, {"size_bytes": 4 * parameters, "bits_per_byte_loss": 0.0})}
    rows = reference | {name: f for name, f in figures.items() if name != REFERENCE}
    names, shown = list(rows), list(rows.values())
    figure = Figure(figsize=(10, HEAD + ROW * len(rows) + FOOT), dpi=160, facecolor=SURFACE)
    top, bottom = 1 - HEAD / figure.get_figheight(), FOOT / figure.get_figheight()
    axes = figure.subplots(1, 5, gridspec_kw={"wspace": 0.14}, sharey=True)
    figure.subplots_adjust(left=0.095, right=0.995, top=top, bottom=bottom)
    for axis in axes:
        _plain(axis, len(rows))
    axes[0].set_yticks(range(len(names)), names, color=INK, fontsize=9)
    _bars(axes[0], "size", "MB", [f["size_bytes"] / 1e6 for f in shown], "{:,.2f}".format)
    _bars(axes[1], "lost", "bits per byte, %", [100 * f["bits_per_byte_loss"] for f in shown], "{:+.3f}".format)
    _divergence(axes[2], shown)
    for axis, title, key in (
        (axes[3], "prefill", "prefill_tokens_per_second"),
        (axes[4], "decode", "decode_tokens_per_second"),
    ):
        _bars(axis, title, "tokens/s", [f.get(key) for f in shown], "{:,.0f}".format)
    return figure


def _bars(axis: Axes, title: str, unit: str, values: Sequence[float | None], text: Callable[[float], str]) -> None:
    _head(axis, title, unit)
    most = max([abs(value) for value in values if value is not None] or [0.0]) or 1.0
    axis.set_xlim(0, 1.5 * most)  # room for the number of the longest bar
    for row, value in enumerate(values):
        if value is None:
            axis.text(0, row, "–", color=MUTED, va="center", fontsize=9)
            continue
        axis.barh(row, max(value, 0.0), height=0.5, color=SOFT if row == 0 else ACCENT)
        axis.text(max(value, 0.0) + 0.03 * most, row, text(value), color=INK, va="center", fontsize=9)


def _divergence(axis: Axes, shown: list[dict[str, Any]]) -> None:
    """Draw a line from the median to the 99th percentile and a dot for the mean: a mean alone hides the tail."""
    _head(axis, "KL from fp32", "nats a token: 50 to 99 %, mean")
    ranges = {row: f["kl_quantiles"] for row, f in enumerate(shown) if f.get("kl_quantiles")}
    ends = [max(1e-7, quantiles[key]) for quantiles in ranges.values() for key in ("0.5", "0.99")] or [1e-7, 1.0]
    axis.set_xscale("log")
    axis.set_xlim(min(ends) / 1.5, max(ends) * (max(ends) / min(ends)) ** 0.9 * 1.5)  # the right part has the numbers
    for row, f in enumerate(shown):
        if row not in ranges:
            axis.text(min(ends), row, "–", color=MUTED, va="center", fontsize=9)
            continue
        low, high, mean = (max(1e-7, value) for value in (ranges[row]["0.5"], ranges[row]["0.99"], f["kl"]))
        axis.plot([low, high], [row, row], color=SOFT, lw=5, solid_capstyle="round")
        axis.plot(mean, row, "o", color=ACCENT, markersize=6)
        axis.annotate(
            f"{mean:.2g}", (high, row), (8, 0), textcoords="offset points", va="center", fontsize=9, color=INK
        )


def _head(axis: Axes, title: str, unit: str) -> None:
    place: dict[str, Any] = {"xy": (0, 1), "xycoords": "axes fraction", "textcoords": "offset points"}
    axis.annotate(title, xytext=(0, 15), color=INK, fontsize=10, fontweight="bold", **place)
    axis.annotate(unit, xytext=(0, 3), color=MUTED, fontsize=7.5, **place)


def _plain(axis: Axes, rows: int) -> None:
    axis.set_ylim(rows - 0.4, -0.6)
    axis.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axis.xaxis.set_visible(False)
    axis.tick_params(axis="y", length=0, labelleft=axis.get_subplotspec().is_first_col())  # type: ignore[union-attr]
    for row in range(rows - 1):
        axis.axhline(row + 0.5, color=LINE, lw=0.6)
