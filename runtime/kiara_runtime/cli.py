"""`kiara-run`: thin over `kiara_runtime.load`. The training side's `kiara` builds on the same pieces."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kiara_runtime.errors import UserError
from kiara_runtime.sampling import SamplingParams

if TYPE_CHECKING:
    from kiara_runtime.generate import Model

INTERRUPTED = 130  # the shell's 128 + SIGINT


class Commands(click.Group):
    """A group whose commands end in one line, and no traceback, for whatever the user can mend."""

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else self.name
            code = _say(f"Error: {error.format_message()} See {command} --help.", error.exit_code)
        except click.ClickException as error:
            code = _say(f"Error: {error.format_message()}", error.exit_code)
        except UserError as error:
            code = _say(f"Error: {error}", 1)
        except MemoryError:
            code = _say("Error: out of memory; a smaller model, batch or context needs less", 1)
        except OSError as error:
            if error.strerror is None:
                raise
            where = error.filename or "writing"
            code = _say(f"Error: {where}: {error.strerror}; check the path, your rights and the disk", 1)
        sys.exit(code or 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(_say("Interrupted; run the same command again.", INTERRUPTED))


def _say(message: str, code: int) -> int:
    click.echo(message, err=True)
    return code


def generate_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The prompt, every field of SamplingParams and the form of the output, as options of a command."""
    kinds: dict[str, dict[str, Any]] = {"stop": {"multiple": True}, "ignore_eos": {"is_flag": True}}
    options = [
        click.option("-p", "--prompt", help="Text to continue; read from standard input where it is not given."),
        *(
            click.option(
                f"--{field.name.replace('_', '-')}",
                default=field.default,
                show_default=field.default not in (None, (), False),
                help=field.metadata["help"],
                **kinds.get(field.name, {"type": int if "int" in str(field.type) else float}),
            )
            for field in dataclasses.fields(SamplingParams)
        ),
        click.option("--chat", is_flag=True, help="Send the prompt as a message, through the model's chat template."),
        click.option("--echo", is_flag=True, help="Print the prompt before its continuation."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of streaming text."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def run_generate(model: Model, prompt: str | None, chat: bool, echo: bool, as_json: bool, **sampling: Any) -> None:
    """Continue the prompt on standard output; figures go to standard error, or into the JSON object."""
    sampling["seed"] = SamplingParams(seed=sampling["seed"]).seed  # one is drawn here, so that it can be told
    text = _piped() if prompt is None else prompt
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError("prompt: not UTF-8; convert it (iconv)")
    given = model.chat_prompt([{"role": "user", "content": text}]) if chat else text
    if as_json:
        result = model.generate(given, **sampling)
        shown = {"text": text + result.text if echo else result.text, "completion_tokens": len(result.tokens)}
        click.echo(json.dumps({**dataclasses.asdict(result), **shown}, ensure_ascii=False))
        return
    started = time.perf_counter()
    pieces = model.stream(given, **sampling)
    if echo:
        click.echo(text, nl=False)
    times: list[float] = []
    for piece in pieces:
        times.append(time.perf_counter())
        click.echo(piece.text, nl=False)
    click.echo()
    tokens = len(times) - 1  # the last piece ends the text and brings none
    speed = f"{(tokens - 1) / (times[-2] - times[0]):,.0f} tokens/s" if tokens > 1 else "one token or none"
    click.echo(
        f"[{tokens} tokens, {speed}, first after {1000 * (times[0] - started):.0f} ms, seed {sampling['seed']}]",
        err=True,
    )


def _piped() -> str:
    """The prompt from standard input, to its last byte."""
    if sys.stdin is None or sys.stdin.isatty():  # pyright: ignore[reportUnnecessaryComparison] - it can be closed
        raise click.UsageError("no prompt: give one with -p, or pipe it in")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"prompt: standard input is not UTF-8 at byte {error.start}; convert it (iconv)") from None


def figures_line(name: str, figures: Mapping[str, Any]) -> str:
    """A variant's receipt in a line."""
    return (
        f"{name}: {figures['size_bytes'] / 1e6:.2f} MB ({figures['bytes_per_parameter']:.3f} bytes a parameter), "
        f"{figures['bits_per_byte']:.4f} bits per byte ({figures['bits_per_byte_loss']:+.3%} against fp32), "
        f"{figures['top1_agreement']:.2%} of choices as fp32, "
        f"{figures['decode_tokens_per_second']:,.0f} tokens/s"
    )


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kiara-runtime")
def main() -> None:
    """Run a language model that `kiara export` wrote: no network, no PyTorch."""


BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
VARIANT = click.option("--variant", help="Which graph of the bundle, such as int8; by default the first it lists.")


@main.command()
@BUNDLE
@VARIANT
@click.option("--threads", type=int, help="Threads of ONNX Runtime; by default one for every core.")
@generate_options
def generate(bundle: Path, variant: str | None, threads: int | None, **options: Any) -> None:
    """Continue a prompt, streaming the text."""
    from kiara_runtime.generate import load

    run_generate(load(bundle, variant=variant, threads=threads), **options)


@main.command()
@BUNDLE
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as it is.")
def info(bundle: Path, as_json: bool) -> None:
    """Show what a bundle holds.

    Its architecture, its variants with their figures, and where the weights come from.
    """
    from kiara_runtime.bundle import Bundle

    manifest = Bundle.open(bundle).manifest
    if as_json:
        click.echo(json.dumps(manifest, indent=2))
        return
    try:
        lines = list(_describe(bundle, manifest))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{bundle}: its manifest tells less than this version shows ({error!r}); --json prints it"
        ) from None
    click.echo("\n".join(lines))


def _describe(bundle: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    shape, source = manifest["architecture"], manifest["provenance"]
    yield f"{bundle}: {manifest['parameters'] / 1e6:.2f}M parameters, format {manifest['format_version']}"
    yield (
        f"  {shape['num_hidden_layers']} layers of width {shape['hidden_size']}, vocabulary {shape['vocab_size']}, "
        f"context {shape['context_length']} tokens"
    )
    for name, figures in manifest["receipt"].items():
        yield f"  {figures_line(name, figures)}"
    yield (
        f"  from {source['checkpoint']} ({source['imported'] or 'trained, seed ' + str(source['seed'])}), "
        f"weights {source['model.safetensors_sha256'][:16]}"
    )


@main.command()
@BUNDLE
@click.option(
    "--deep", is_flag=True, help="Also run recorded text along every path of every graph (seconds to minutes)."
)
@click.option("--public-key", type=click.Path(path_type=Path), help="Ed25519 public key, PEM, of who must have signed.")
def verify(bundle: Path, deep: bool, public_key: Path | None) -> None:
    """Check every byte of a bundle.

    Each file against its recorded size and hash, the tokenizer against recorded ids, and that each graph runs.
    """
    from kiara_runtime.bundle import Bundle
    from kiara_runtime.session import Session

    opened = Bundle.open(bundle)
    if public_key is not None:
        from kiara_runtime.signing import check_signature

        check_signature(bundle, public_key)
        click.echo(f"{bundle}: signed by the owner of {public_key}")
    opened.check()
    opened.load_tokenizer()
    files = opened.manifest["files"]
    if deep:
        from kiara_runtime.deep import verify_deep

        for found in verify_deep(opened):
            paths = found.paths
            click.echo(
                f"{found.variant}: likeliest tokens {found.recorded_agreement:.1%} as recorded, log-likelihood within "
                f"{found.nats_difference:.3%}; as in one prefill: single steps {paths.single_steps:.1%}, chunks "
                f"{paths.chunked_prefill:.1%}, padded batch {paths.padded_batch:.1%}, context's end "
                f"{paths.end_of_context:.1%}; a batch changes {'nothing' if paths.batch_exact else 'last bits'}"
            )
    else:
        for name in opened.variants:
            Session(opened.graph_of(name), opened.architecture).decoder()([opened.bos_token_id])
    click.echo(f"{bundle}: {len(files)} files, {sum(f['size'] for f in files.values()) / 1e6:.2f} MB, all as recorded")


if __name__ == "__main__":
    main()
