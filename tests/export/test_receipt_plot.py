"""The receipt's plot: every number is readable, whatever the number of variants."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from kiara_export.receipt_plot import draw_receipt

KL = {"0.5": 2e-4, "0.9": 4e-4, "0.99": 8e-3, "1.0": 0.5}
FIGURES: dict[str, Any] = {
    "size_bytes": 123_456_789_012,
    "bits_per_byte_loss": 0.01234,
    "kl": 3e-4,
    "kl_quantiles": KL,
    "prefill_tokens_per_second": 1_234_567.0,
    "decode_tokens_per_second": 12_345.0,
}
SMALL = FIGURES | {"size_bytes": 10_000, "bits_per_byte_loss": -0.0001, "kl": 0.0, "kl_quantiles": dict.fromkeys(KL, 0)}
EXACT = FIGURES | {"bits_per_byte_loss": 0.0, "kl": 0.0, "kl_quantiles": {}}


@pytest.mark.parametrize(
    "figures",
    [
        {"int8": FIGURES},
        {"fp32": EXACT},
        {"int8": FIGURES, "int4": SMALL, "int8-dynamic": FIGURES, "fp32": EXACT, "fp16": SMALL},
        {"int8": {key: value for key, value in FIGURES.items() if "per_second" not in key}},
    ],
    ids=["one", "fp32 alone", "all", "no speeds"],
)
def test_no_text_overlaps_another_or_leaves_the_plot(figures: dict[str, Any]) -> None:
    figure = draw_receipt(figures, 40_000_000_000)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    labels = [text for axis in figure.axes for text in (*axis.texts, *axis.get_yticklabels()) if text.get_visible()]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in labels if text.get_text().strip()]
    shown = [box for box in boxes if box.width > 0]
    assert len(shown) >= 12
    for first, second in combinations(shown, 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        down = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert across <= 0 or down <= 2, (first, second)
    width, height = canvas.get_width_height()
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in shown)
