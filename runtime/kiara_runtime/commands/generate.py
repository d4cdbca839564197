"""Options and output shared by `kiara-run generate` and `kiara generate`."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kiara_runtime.errors import UserError
from kiara_runtime.sampling import SamplingParams
from kiara_runtime.system import json_text, tell

if TYPE_CHECKING:
    from kiara_runtime.model import Model
    from kiara_runtime.stream import Generation

MAX_GRAMMAR_BYTES = 1 << 20


def _biases(ctx: click.Context, option: click.Parameter, values: Sequence[str]) -> dict[str, float]:
    try:
        return {token: float(bias) for token, bias in (value.split("=") for value in values)}
    except ValueError:
        raise click.BadParameter(f"{' '.join(values)!r} is not of the form ID=BIAS, such as 42=-5") from None


def _text_or_file(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """The option's value, or the content of the file that @FILE names."""
    if value is None or not value.startswith("@"):
        return value
    path = Path(value[1:])
    if path.stat().st_size > MAX_GRAMMAR_BYTES:
        raise click.BadParameter(f"{path} is larger than {MAX_GRAMMAR_BYTES >> 20} MiB")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{path} is not UTF-8 at byte {error.start}; convert it (iconv)") from None


_GRAMMAR: dict[str, Any] = {"callback": _text_or_file}
_IDS: dict[str, Any] = {"multiple": True, "type": int}
_KINDS: dict[str, dict[str, Any]] = {
    "stop": {"multiple": True},
    "logit_bias": {"multiple": True, "callback": _biases, "default": (), "metavar": "ID=BIAS"},
    "banned_tokens": _IDS,
    "stop_token_ids": _IDS,
    "json_schema": _GRAMMAR,
    "regex": _GRAMMAR,
    "grammar": _GRAMMAR,
}


def _option(field: dataclasses.Field[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    name = f"--{field.name.replace('_', '-')}"
    if field.type == "bool":
        kind: dict[str, Any] = {"is_flag": True}
        name = f"{name}/--no-{name[2:]}" if field.default else name
    else:
        kind = _KINDS.get(field.name, {"type": int if "int" in str(field.type) else float})
    shown: dict[str, Any] = {"default": field.default, "show_default": isinstance(field.default, (int, float)), **kind}
    return click.option(name, help=field.metadata["help"], **shown)


def generate_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add options to a command: the prompt, every field of SamplingParams, and the output format."""
    options = [
        click.option("-p", "--prompt", help="Text to continue; read from standard input if not given."),
        *(_option(field) for field in dataclasses.fields(SamplingParams)),
        click.option("-n", "--n", type=int, default=1, show_default=True, help="Number of continuations."),
        click.option("--suffix", help="Write what is between the prompt and this text (fill in the middle)."),
        click.option("--chat", is_flag=True, help="Send the prompt as a user message, with the chat template."),
        click.option("--echo", is_flag=True, help="Print the prompt before its continuation."),
        click.option(
            "--json", "as_json", is_flag=True, help="Print one JSON object per line instead of streaming text."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def run_generate(
    model: Model,
    prompt: str | None,
    n: int,
    suffix: str | None,
    chat: bool,
    echo: bool,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Print the continuation on standard output; timings go to standard error, or into the JSON object."""
    if chat and suffix is not None:
        raise UserError("--suffix", "does not go together with --chat", "leave one of them out")
    sampling["seed"] = SamplingParams(**sampling).seed  # a random seed is drawn here so that it can be printed
    text = _piped() if prompt is None else prompt
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError("prompt", "not UTF-8", "convert it (iconv)")
    given = model.chat_prompt([{"role": "user", "content": text}]) if chat else text
    if suffix is not None:
        given, params = model.infill(text, suffix, SamplingParams(**sampling))
        sampling["stop_token_ids"] = params.stop_token_ids
    shown = text if echo else ""
    if n == 1 and not as_json:
        _stream(model, given, shown, sampling)
        return
    for result in model.generate_all([given], n, **sampling)[0]:
        if as_json:
            click.echo(_as_json(result, shown))
        else:
            click.echo(f"{shown}{result.text}\n[{len(result.tokens)} tokens, {result.finish_reason}]\n")


def _as_json(result: Generation, shown: str) -> str:
    values = {**dataclasses.asdict(result), "text": shown + result.text, "completion_tokens": len(result.tokens)}
    return json_text(values)


def _stream(model: Model, given: str | list[int], shown: str, sampling: dict[str, Any]) -> None:
    started = time.perf_counter()
    pieces = model.stream(given, **sampling)
    click.echo(shown, nl=False)
    times: list[float] = []
    for piece in pieces:
        times.append(time.perf_counter())
        click.echo(piece.text, nl=False)
    click.echo()
    tokens = len(times) - 1  # the last piece has no token
    speed = f"{(tokens - 1) / (times[-2] - times[0]):,.0f} tokens/s" if tokens > 1 else "too few to time"
    tell(f"[{tokens} tokens, {speed}, first after {1000 * (times[0] - started):.0f} ms, seed {sampling['seed']}]")


def _piped() -> str:
    """Read the prompt from standard input, unchanged."""
    if sys.stdin is None or sys.stdin.isatty():  # pyright: ignore[reportUnnecessaryComparison] - it can be closed
        raise click.UsageError("no prompt: give one with -p, or pipe it in")
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("prompt", f"standard input is not UTF-8 at byte {error.start}", "convert it (iconv)") from None
