"""The `kiara-run bench` command: speed and memory of a bundle on this machine, and where the time goes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kiara_runtime.commands.options import BUNDLE, KV_CACHE, THREADS, VARIANT

if TYPE_CHECKING:
    from kiara_runtime.engine import KVCache
    from kiara_runtime.verify import Profile

PROMPT_TOKENS, DECODE_TOKENS = 256, 128


@click.command()
@BUNDLE
@VARIANT
@THREADS
@KV_CACHE
@click.option("--prompt-tokens", type=click.IntRange(1), default=PROMPT_TOKENS, show_default=True)
@click.option("--max-tokens", type=click.IntRange(2), default=DECODE_TOKENS, show_default=True)
@click.option("--batch", type=click.IntRange(1, 64), multiple=True, default=(1, 4, 8), show_default=True)
@click.option("--profile", "profiled", is_flag=True, help="Show instead where the time goes, by kind of node.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(
    bundle: Path,
    variant: str | None,
    threads: int | None,
    kv_cache: KVCache,
    prompt_tokens: int,
    max_tokens: int,
    batch: tuple[int, ...],
    profiled: bool,
    as_json: bool,
) -> None:
    """Measure a bundle on this machine: load time, prefill, decode, batched decode, memory.

    Shown next to the figures that the bundle's receipt recorded at export.
    """
    from kiara_runtime.bundle import Bundle
    from kiara_runtime.system import machine
    from kiara_runtime.verify import measure_in_subprocess, profile

    opened = Bundle.open(bundle)
    name = variant or opened.variants[0]
    if profiled:
        found = profile(opened, name, threads, prompt_tokens, kv_cache == "int8")
        lines = list(_profile_lines(found))
    else:
        found = measure_in_subprocess(
            bundle,
            name,
            threads=threads,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            batch=batch,
            kv_cache=kv_cache,
        )
        lines = [f"{label:34} {value}" for label, value in found.rows(opened.manifest["receipt"].get(name, {}))]
    if as_json:
        click.echo(json.dumps({"variant": name, "machine": machine(), **dataclasses.asdict(found)}, indent=2))
        return
    click.echo(f"{bundle} {name} on {' '.join(str(value) for value in machine().values())}")
    for line in lines:
        click.echo(f"  {line}".rstrip())


def _profile_lines(found: Profile) -> Iterator[str]:
    yield f"memory is read at {found.read / 1e9:,.1f} GB/s; matrices multiply at {found.multiplied / 1e9:,.0f} GFLOP/s"
    for title, one in (
        (f"a decode step after {found.decode.cached} tokens", found.decode),
        (f"a prompt of {found.prompt.tokens} tokens in one pass", found.prompt),
    ):
        yield from ("", f"{title:34} {'nodes':>6} {one.milliseconds:12,.3f} ms")
        for name, count, milliseconds in one.rows():
            nodes = "" if count is None else count
            yield f"  {name:32} {nodes:>6} {milliseconds:12,.3f} ms {milliseconds / one.milliseconds:8.1%}"
    least = 1000 * found.graph_bytes / found.read
    yield from ("", f"reading the graph's {found.graph_bytes / 1e6:,.1f} MB once takes {least:,.2f} ms at that speed")
