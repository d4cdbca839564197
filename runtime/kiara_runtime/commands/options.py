"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
THREADS = click.option("--threads", type=int, help="ONNX Runtime threads; by default one per core.")
VARIANT = click.option("--variant", help="Variant to run, such as int8; by default the bundle's first.")
