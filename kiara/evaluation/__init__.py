"""Evaluation of checkpoints in PyTorch, and the PyTorch reference that bundles are compared with.

`kiara_runtime.verify.scoring` computes the metrics.
"""

from kiara.evaluation.compare import Comparison, compare, read_prompts
from kiara.evaluation.evaluate import (
    Metrics,
    evaluate_checkpoint,
    held_out_examples,
    held_out_text,
    rows_at_once,
    tensors,
    window_length,
    windows,
)
from kiara.evaluation.reference import reference_model

__all__ = [
    "Comparison",
    "Metrics",
    "compare",
    "evaluate_checkpoint",
    "held_out_examples",
    "held_out_text",
    "read_prompts",
    "reference_model",
    "rows_at_once",
    "tensors",
    "window_length",
    "windows",
]
