"""Evaluation of checkpoints in PyTorch, and the PyTorch reference that bundles are compared with.

`kiara_runtime.verify.scoring` computes the metrics.
"""
