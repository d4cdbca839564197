"""`kiara-run serve`: its options, and what they become."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kiara_runtime.errors import UserError
from kiara_runtime.system import tell

if TYPE_CHECKING:
    from kiara_runtime.engine import Device

EXTRA = "pip install 'kiara-runtime[server]'"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--variant", help="Which graph of the bundle, such as int8; by default the first it lists.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of ONNX Runtime; by default one for every core.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--prompt-cache", type=click.Path(path_type=Path), help="Folder that keeps prompts' state for next time.")
@click.option("--slots", type=click.IntRange(1, 64), default=8, show_default=True, help="Sequences that run at once.")
@click.option("--queue", type=click.IntRange(0, 1000), default=32, show_default=True, help="Requests that may wait.")
@click.option("--timeout", type=click.IntRange(1, 86400), default=600, show_default=True, help="Seconds for a request.")
@click.option("--drain", type=click.IntRange(0, 3600), default=30, show_default=True, help="Seconds to end in.")
@click.option("--max-body", type=click.IntRange(1024, 1 << 28), default=2 << 20, show_default=True, help="Bytes.")
@click.option(
    "--api-key-file", type=click.Path(path_type=Path), help="Keys, one a line; a client must show one of them."
)
@click.option("--allow-host", multiple=True, help="A name that clients may know this server by, such as llm.lan.")
@click.option("--cors-origin", multiple=True, help="An origin whose pages may use this server: https://example.org.")
@click.option("--log-prompts", is_flag=True, help="Write what clients ask into the log, too.")
def serve(
    bundle: Path,
    host: str,
    port: int,
    variant: str | None,
    threads: int | None,
    device: Device,
    prompt_cache: Path | None,
    slots: int,
    queue: int,
    api_key_file: Path | None,
    allow_host: tuple[str, ...],
    cors_origin: tuple[str, ...],
    **limits: int,
) -> None:
    """Serve a bundle over HTTP.

    OpenAI's completions and chat, and a page for people at /. A line of JSON for each request goes to standard error.
    """
    try:
        from kiara_runtime.server import Guard, Settings, read_keys
        from kiara_runtime.server import serve as run
    except ModuleNotFoundError as error:
        raise UserError("serve", f"needs the package {error.name}", EXTRA) from None
    from kiara_runtime.model import load

    _check(allow_host, r"[A-Za-z0-9._-]+", "--allow-host", "give a name without a port, such as llm.lan")
    _check(
        cors_origin,
        r"(?i)https?://[^/*\s@]+",
        "--cors-origin",
        "give scheme, name and port, such as https://example.org",
    )
    keys = read_keys(_lines(api_key_file)) if api_key_file else frozenset[str]()
    if api_key_file and not keys:
        raise UserError(f"--api-key-file {api_key_file}", "holds no key", "write one a line")
    guard = Guard(keys, frozenset(name.lower() for name in allow_host), frozenset(map(_origin, cors_origin)))
    settings = Settings(slots=slots, queue=queue, guard=guard, **limits)  # pyright: ignore[reportArgumentType]
    room = (slots + queue) * slots  # what requests that are in may bring at once
    run(
        bundle,
        host,
        port,
        settings,
        variant,
        lambda opened: load(opened, variant, threads, device, slots, room, prompt_cache),
        tell,
    )


def _check(values: tuple[str, ...], form: str, option: str, remedy: str) -> None:
    for value in values:
        if not re.fullmatch(form, value):
            raise UserError(f"{option} {value}", "can match nothing", remedy)


def _origin(value: str) -> str:
    """As browsers write it."""
    scheme, _, place = value.lower().partition("://")
    return f"{scheme}://{place.removesuffix(':443' if scheme == 'https' else ':80')}"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"--api-key-file {path}", "is no text", "write one key a line") from None
