"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
THREADS = click.option("--threads", type=int, help="ONNX Runtime threads; by default one per core.")
DEVICE = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="cuda runs the variant fp16; auto uses it where it works.",
)
KV_CACHE = click.option(
    "--kv-cache",
    type=click.Choice(["fp32", "int8"]),
    default="fp32",
    show_default=True,
    help="int8 takes a quarter of the memory and decodes long contexts faster, but reads prompts slower.",
)
VARIANT = click.option("--variant", help="Variant to run, such as int8; by default the bundle's first.")
