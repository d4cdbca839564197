"""The `kiara-run embed` command: texts to vectors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kiara_runtime.commands.options import BUNDLE, THREADS, VARIANT
from kiara_runtime.errors import UserError
from kiara_runtime.system import tell

if TYPE_CHECKING:
    from kiara_runtime.engine import Pooling

BATCH = 256  # texts that are read before their vectors are printed


@click.command()
@BUNDLE
@click.argument("texts", nargs=-1)
@VARIANT
@THREADS
@click.option("--pooling", type=click.Choice(["mean", "last"]), default="mean", show_default=True)
@click.option("--dimensions", type=int, help="Keep only the first entries of each vector.")
@click.option("--normalize/--no-normalize", default=True, show_default=True, help="Scale vectors to a length of 1.")
@click.option("--out", type=click.Path(path_type=Path), help="Write a matrix for numpy.load (.npy) instead of JSON.")
def embed(
    bundle: Path,
    texts: tuple[str, ...],
    variant: str | None,
    threads: int | None,
    pooling: Pooling,
    dimensions: int | None,
    normalize: bool,
    out: Path | None,
) -> None:
    """Turn texts into vectors.

    TEXTS, or the lines of standard input, one text each. Prints a line of JSON per text. The bundle must have been
    exported with --embeddings.
    """
    import numpy as np

    from kiara_runtime.loading import load

    if out is not None and out.suffix != ".npy":
        raise UserError(f"--out {out}", "is not the name of an .npy file", "end it with .npy")
    found: list[np.ndarray] = []
    with load(bundle, variant, threads, slots=1) as model:
        for batch in _batches(texts):
            vectors = model.embed(batch, pooling, dimensions, normalize)
            if out is None:
                for vector in vectors:
                    click.echo(json.dumps([float(str(value)) for value in vector]))
            else:
                found.append(vectors)
                tell(f"{sum(map(len, found)):,} texts")
    if out is not None:
        np.save(out, np.concatenate(found) if found else np.zeros((0, 0), np.float32))


def _batches(texts: tuple[str, ...]) -> Iterator[list[str]]:
    """The texts, or the lines of standard input without their ends."""
    if texts:
        yield list(texts)
        return
    if sys.stdin is None or sys.stdin.isatty():  # pyright: ignore[reportUnnecessaryComparison] - it can be closed
        raise click.UsageError("no text: give some as arguments, or pipe one per line in")
    batch: list[str] = []
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            batch.append(line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n"))
        except UnicodeDecodeError as error:
            raise UserError(f"line {number}", f"is not UTF-8 at byte {error.start}", "convert it (iconv)") from None
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
