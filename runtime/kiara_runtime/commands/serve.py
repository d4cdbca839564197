"""The `kiara-run serve` command: its options and their checks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kiara_runtime.commands.amounts import size_of
from kiara_runtime.commands.options import DEVICE, KV_CACHE
from kiara_runtime.errors import UserError
from kiara_runtime.system import tell

if TYPE_CHECKING:
    from kiara_runtime.engine import Device, KVCache

EXTRA = "pip install 'kiara-runtime[server]'"


@click.command()
@click.argument("bundles", metavar="BUNDLE...", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 picks a free port.")
@click.option("--unix-socket", type=click.Path(path_type=Path), help="Listen on this socket instead, behind a proxy.")
@click.option("--root-path", default="", help="Prefix of all paths behind a proxy, such as /llm.")
@click.option(
    "--trusted-proxy", help="Address of a proxy whose X-Forwarded headers count; localhost for a Unix socket."
)
@click.option("--variant", help="Variant to serve, such as int8; by default the bundle's first.")
@click.option("--threads", type=click.IntRange(1, 1024), help="ONNX Runtime threads; by default one per core.")
@DEVICE
@click.option("--prompt-cache", type=click.Path(path_type=Path), help="Folder that keeps the KV cache of prompts.")
@KV_CACHE
@click.option("--slots", type=click.IntRange(1, 64), default=8, show_default=True, help="Sequences that run at once.")
@click.option(
    "--queue", type=click.IntRange(0, 1000), default=32, show_default=True, help="Requests that may wait for a slot."
)
@click.option(
    "--timeout", type=click.IntRange(1, 86400), default=600, show_default=True, help="Seconds that a request may take."
)
@click.option(
    "--drain",
    type=click.IntRange(0, 3600),
    default=30,
    show_default=True,
    help="Seconds that running requests get at shutdown.",
)
@click.option(
    "--drain-delay",
    type=click.IntRange(0, 3600),
    default=0,
    show_default=True,
    help="Seconds before that in which /ready is red and requests are still accepted, for a load balancer to notice.",
)
@click.option(
    "--max-body",
    type=click.IntRange(1024, 1 << 28),
    default=2 << 20,
    show_default=True,
    help="Bytes of a request body.",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help="File of API keys, one per line; clients must send one of them.",
)
@click.option("--allow-host", multiple=True, help="A name to accept in the Host header, such as llm.lan.")
@click.option(
    "--cors-origin", multiple=True, help="An origin whose pages may call this server, such as https://example.org."
)
@click.option("--any-model", is_flag=True, help="Answer whatever model a request names, such as gpt-4o.")
@click.option("--alias", multiple=True, metavar="NAME=MODEL", help="A further name of a model.")
@click.option(
    "--max-models", type=click.IntRange(1), help="Models in memory at once; another one has to go for the next."
)
@click.option(
    "--memory", metavar="SIZE", help="Bound on this process, such as 2GB; models that are not in use go first."
)
@click.option("--idle-seconds", type=click.IntRange(1), help="Unload a model that has had no request for so long.")
@click.option(
    "--otlp-endpoint", metavar="URL", help="Send traces (OpenTelemetry) to it, such as http://127.0.0.1:4318."
)
@click.option("--log-prompts", is_flag=True, help="Also log the content of requests.")
def serve(
    bundles: tuple[Path, ...],
    host: str,
    port: int,
    unix_socket: Path | None,
    variant: str | None,
    threads: int | None,
    device: Device,
    prompt_cache: Path | None,
    kv_cache: KVCache,
    slots: int,
    queue: int,
    api_key_file: Path | None,
    allow_host: tuple[str, ...],
    cors_origin: tuple[str, ...],
    alias: tuple[str, ...],
    max_models: int | None,
    memory: str | None,
    idle_seconds: int | None,
    root_path: str,
    **limits: Any,
) -> None:
    """Serve bundles over HTTP.

    BUNDLE is a bundle, or a folder of bundles. A single one is loaded at once, several when they are first asked for.
    In the formats of OpenAI, Anthropic and Ollama, and a web page at /. Logs one line of JSON per request.
    """
    try:
        from kiara_runtime.server import Address, Guard, Limits, Settings, read_keys
        from kiara_runtime.server import serve as run
    except ModuleNotFoundError as error:
        raise UserError("serve", f"needs the package {error.name}", EXTRA) from None
    from kiara_runtime.loading import load

    _check(allow_host, r"[A-Za-z0-9._-]+", "--allow-host", "give a name without a port, such as llm.lan")
    _check(
        cors_origin,
        r"(?i)https?://[^/*\s@]+",
        "--cors-origin",
        "give scheme, name and port, such as https://example.org",
    )
    keys = read_keys(_lines(api_key_file)) if api_key_file else frozenset[str]()
    if api_key_file and not keys:
        raise UserError(f"--api-key-file {api_key_file}", "holds no key", "write one key per line")
    guard = Guard(keys, frozenset(name.lower() for name in allow_host), frozenset(map(_origin, cors_origin)))
    if root_path and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", root_path):
        raise UserError(f"--root-path {root_path}", "is not a path", "give one such as /llm, without a / at its end")
    loaded = Limits(max_models, size_of("--memory", memory), idle_seconds)
    settings = Settings(
        slots=slots, queue=queue, guard=guard, limits=loaded, aliases=_aliases(alias), root_path=root_path, **limits
    )
    room = (slots + queue) * slots  # each admitted request submits at most `slots` sequences at once
    run(
        bundles,
        Address(host, port, unix_socket),
        settings,
        variant,
        kv_cache == "int8",
        lambda opened: load(opened, variant, threads, device, slots, room, prompt_cache, kv_cache=kv_cache),
        tell,
    )


def _check(values: tuple[str, ...], form: str, option: str, remedy: str) -> None:
    for value in values:
        if not re.fullmatch(form, value):
            raise UserError(f"{option} {value}", "can never match", remedy)


def _aliases(values: tuple[str, ...]) -> dict[str, str]:
    for value in values:
        if not re.fullmatch("[^=]+=[^=]+", value):
            raise UserError(f"--alias {value}", "is not of the form NAME=MODEL", "give one such as gpt-4o=small")
    return dict(value.split("=") for value in values)


def _origin(value: str) -> str:
    """The origin as browsers write it: lowercase, without the default port."""
    scheme, _, place = value.lower().partition("://")
    return f"{scheme}://{place.removesuffix(':443' if scheme == 'https' else ':80')}"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"--api-key-file {path}", "is not UTF-8 text", "write one key per line") from None
