"""Checkpoints on disk: safetensors and JSON, written whole or not at all, checked before use."""
