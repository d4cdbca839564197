"""Hugging Face model families: one file describes each, and `registry` reads and writes checkpoints by them.

A new family is a file here, and at most new fields in `kiara.config.model`.
"""
