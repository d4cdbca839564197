"""Evaluation of checkpoints in PyTorch, and the PyTorch reference that bundles are compared with.

`kiara_runtime.verify.scoring` computes the metrics.
"""

from kiara.evaluation.compare import Comparison, compare, read_prompts
from kiara.evaluation.evaluate import (
    Metrics,
    Predict,
    evaluate_checkpoint,
    held_out_examples,
    held_out_text,
    predicted,
    rows_at_once,
    tensors,
    window_length,
    windows,
)
from kiara.evaluation.reference import reference_model

__all__ = [
    "Comparison",
    "Metrics",
    "Predict",
    "compare",
    "evaluate_checkpoint",
    "held_out_examples",
    "held_out_text",
    "predicted",
    "read_prompts",
    "reference_model",
    "rows_at_once",
    "tensors",
    "window_length",
    "windows",
]
