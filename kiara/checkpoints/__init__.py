"""Checkpoints on disk: safetensors and JSON, written completely or not at all, hashes checked before use."""
