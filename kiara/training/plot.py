"""Plot of a run: training loss, validation loss and bits per byte over the steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SMOOTHING = 0.9  # of the exponential moving average, because single batches are noisy


def plot_run(metrics: list[dict[str, Any]], out: Path) -> None:
    """Plot the records of `metrics.jsonl` to the PNG file `out`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps = [record for record in metrics if "loss" in record]
    validations = [record for record in metrics if "val_loss" in record]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    at = [record["step"] for record in steps]
    axes.plot(at, [record["loss"] for record in steps], color="#9ecae1", linewidth=0.8, label="training, each batch")
    axes.plot(at, _smooth([record["loss"] for record in steps]), color="#2171b5", label="training, smoothed")
    at = [record["step"] for record in validations]
    axes.plot(at, [record["val_loss"] for record in validations], "o-", color="#d94801", label="validation")
    for record in validations[-1:]:
        axes.annotate(
            f"{record['val_bits_per_byte']:.3f} bits per byte",
            (record["step"], record["val_loss"]),
            xytext=(-6, 14), textcoords="offset points", ha="right", color="#d94801",
        )  # fmt: skip
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)", title="Loss of the run")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def _smooth(values: list[float]) -> list[float]:
    smoothed, weight, total = [], 0.0, 0.0
    for value in values:
        total = SMOOTHING * total + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        smoothed.append(total / weight)
    return smoothed
