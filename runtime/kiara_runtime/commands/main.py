"""The `kiara-run` commands. `kiara` uses the same command group and options."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kiara_runtime.commands.bench import bench
from kiara_runtime.commands.chat import chat
from kiara_runtime.commands.embed import embed
from kiara_runtime.commands.generate import generate_options, run_generate
from kiara_runtime.commands.options import BUNDLE, DEVICE, KV_CACHE, THREADS, VARIANT
from kiara_runtime.commands.serve import serve
from kiara_runtime.errors import UserError
from kiara_runtime.system import (
    CODES,
    LINES,
    Terminated,
    discard_stdout,
    handle_signals,
    json_text,
    leave,
    replace_unencodable,
    tell,
)

if TYPE_CHECKING:
    from kiara_runtime.engine import Device, KVCache


class Commands(click.Group):
    """A group that reports errors the user can fix in one line, without a traceback."""

    def main(self, *args: Any, **extra: Any) -> Any:
        replace_unencodable()
        heard: set[int] = set()
        try:
            with handle_signals() as heard:
                code = super().main(*args, **{**extra, "standalone_mode": False})
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else self.name
            code = _say(f"Error: {error.format_message()} See {command} --help.", error.exit_code)
        except click.ClickException as error:
            code = _say(f"Error: {error.format_message()}", error.exit_code)
        except UserError as error:
            code = _say(f"Error: {error}", 1)
        except MemoryError:
            code = _say("Error: out of memory; use a smaller model, batch or context", 1)
        except BrokenPipeError:
            discard_stdout()
            code = 1
        except OSError as error:
            # On a full disk NumPy raises an OSError without strerror; its text has the byte counts instead.
            where, what = error.filename or "writing", error.strerror or str(error) or type(error).__name__
            code = _say(f"Error: {where}: {what}; check the path, its permissions and the free disk space", 1)
        if heard:
            leave(code or 0)
        sys.exit(code or 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            number = error.signal if isinstance(error, Terminated) else signal.SIGINT
            ctx.exit(_say(LINES[number], CODES[number]))


def _say(message: str, code: int) -> int:
    tell(message)
    return code


def figures_line(name: str, figures: Mapping[str, Any]) -> str:
    """A variant's figures from the receipt, in one line."""
    return (
        f"{name}: {figures['size_bytes'] / 1e6:.2f} MB ({figures['bytes_per_parameter']:.3f} bytes per parameter), "
        f"{figures['bits_per_byte']:.4f} bits per byte ({figures['bits_per_byte_loss']:+.3%} against fp32), "
        f"{figures['top1_agreement']:.2%} top-1 agreement with fp32, "
        f"{figures['decode_tokens_per_second']:,.0f} tokens/s"
        f"{_cache_note(figures.get('int8_cache'))}"
    )


def _cache_note(figures: Mapping[str, Any] | None) -> str:
    return "" if figures is None else f", int8 KV cache {figures['bits_per_byte_loss']:+.3%}"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kiara-runtime")
def main() -> None:
    """Run a language model that `kiara export` wrote: no network, no PyTorch."""


main.add_command(bench)
main.add_command(serve)
main.add_command(chat)
main.add_command(embed)


@main.command()
@BUNDLE
@VARIANT
@THREADS
@DEVICE
@click.option("--prompt-cache", type=click.Path(path_type=Path), help="Folder that keeps the KV cache of prompts.")
@KV_CACHE
@generate_options
def generate(
    bundle: Path,
    variant: str | None,
    threads: int | None,
    device: Device,
    prompt_cache: Path | None,
    kv_cache: KVCache,
    **options: Any,
) -> None:
    """Continue a prompt, streaming the text."""
    from kiara_runtime.engine import SLOTS
    from kiara_runtime.loading import load

    slots = max(1, min(SLOTS, options["n"]))
    model = load(bundle, variant, threads, device, slots, prompt_cache=prompt_cache, kv_cache=kv_cache)
    run_generate(model, **options)


@main.command()
@BUNDLE
@click.argument("file", type=click.Path(path_type=Path))
@VARIANT
@THREADS
@KV_CACHE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    bundle: Path, file: Path, variant: str | None, threads: int | None, kv_cache: KVCache, as_json: bool
) -> None:
    """Bits per byte and perplexity of a text, on this machine."""
    from kiara_runtime.bundle import Bundle
    from kiara_runtime.verify import evaluate as run
    from kiara_runtime.verify import read_text

    text = read_text(file)
    with click.progressbar(length=1000, file=sys.stderr) as bar:
        metrics = run(
            Bundle.open(bundle),
            text,
            variant,
            threads,
            lambda done, of: bar.update(1000 * done // of - bar.pos),
            kv_cache == "int8",
        )
    if as_json:
        click.echo(json_text(metrics.named("")))
        return
    click.echo(
        f"{metrics.bits_per_byte:.4f} bits per byte, perplexity {metrics.perplexity:.2f}, "
        f"next-token accuracy {metrics.accuracy:.2%}, {metrics.tokens:,} tokens"
    )


@main.command()
@BUNDLE
@click.option("--json", "as_json", is_flag=True, help="Print the whole manifest as JSON.")
def info(bundle: Path, as_json: bool) -> None:
    """Show a bundle's architecture, its variants with their figures, and the origin of its weights."""
    from kiara_runtime.bundle import Bundle

    manifest = Bundle.open(bundle).manifest
    if as_json:
        click.echo(json.dumps(manifest, indent=2))
        return
    try:
        lines = list(_describe(bundle, manifest))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            bundle, f"its manifest lacks a field that this version shows ({error!r})", "use --json to print it"
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


def _what(exact: bool) -> str:
    return "nothing" if exact else "last bits"


@main.command()
@BUNDLE
@click.option(
    "--deep", is_flag=True, help="Also run the recorded text through every code path of every graph (can take minutes)."
)
@click.option(
    "--public-key", type=click.Path(path_type=Path), help="Ed25519 public key (PEM) that the signature must match."
)
def verify(bundle: Path, deep: bool, public_key: Path | None) -> None:
    """Check every file of a bundle.

    Compares each file with its recorded size and hash and the tokenizer with recorded ids, and runs each graph once.
    """
    from kiara_runtime.bundle import Bundle
    from kiara_runtime.engine import Session, int8_cache_runs
    from kiara_runtime.tokens import load_tokenizer

    opened = Bundle.open(bundle)
    if public_key is not None:
        from kiara_runtime.bundle import check_signature

        check_signature(bundle, public_key)
        click.echo(f"{bundle}: signed by the owner of {public_key}")
    opened.check()
    load_tokenizer(opened)
    files = opened.manifest["files"]
    if deep:
        from kiara_runtime.verify import verify_deep

        for found in verify_deep(opened):
            paths = found.paths
            click.echo(
                f"{found.variant}{', int8 cache' if found.int8_cache else ''}: "
                f"top-1 agreement with the recorded tokens {found.recorded_agreement:.1%}, "
                f"log-likelihood within {found.nats_difference:.3%}; top-1 agreement with one prefill: single steps "
                f"{paths.single_steps:.1%}, chunks {paths.chunked_prefill:.1%}, padded batch "
                f"{paths.padded_batch:.1%}, end of context {paths.end_of_context:.1%}; batching changes "
                f"{_what(paths.batch_exact)}, chunked prefill {_what(paths.chunks_exact)}"
            )
    else:
        for name, int8_cache in opened.graphs():
            if int8_cache and not int8_cache_runs():
                continue
            Session(opened.graph_of(name, int8_cache), opened.architecture).decoder()([opened.bos_token_id])
    if not int8_cache_runs() and any(int8_cache for _, int8_cache in opened.graphs()):
        click.echo("int8 KV caches were not run: this ONNX Runtime cannot", err=True)
    click.echo(f"{bundle}: {len(files)} files, {sum(f['size'] for f in files.values()) / 1e6:.2f} MB, all as recorded")


if __name__ == "__main__":
    main()
