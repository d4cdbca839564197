"""Checks before a bundle is written: float32 against PyTorch, variants against float32, other runtimes."""
