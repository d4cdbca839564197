"""The commands of `kiara`: text to tokens to weights to a bundle. Each imports heavy packages only when it runs."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kiara.commands.amounts import losses_of
from kiara.commands.pages import compare, report
from kiara.commands.settings import check_prepare
from kiara_runtime.bundle import VARIANTS
from kiara_runtime.commands.amounts import size_of
from kiara_runtime.commands.generate import generate_options, run_generate
from kiara_runtime.commands.main import Commands, figures_line
from kiara_runtime.errors import UserError
from kiara_runtime.system import CODES, json_text

if TYPE_CHECKING:
    from kiara.data import Engine

CONFIG = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="YAML file of settings, or a preset: tiny, small, medium, large, xl, xxl.",
)
SETTINGS = click.option(
    "--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Override one setting; may be repeated."
)


def _names_of(feature: str) -> str:
    return " and ".join(variant.choice for variant in VARIANTS if getattr(variant, feature))


def _default_losses() -> str:
    losses = {variant.choice: variant.limits.bits_per_byte_loss for variant in VARIANTS if not variant.lossless}
    return ", ".join(f"{name} {loss:.1%}" for name, loss in losses.items())


SOURCE = click.argument("source", metavar="RUN_OR_CHECKPOINT", type=click.Path(path_type=Path))
TEXT = click.option(
    "--text",
    help="Source of held-out text, or a prepared folder, whose validation split is taken: of conversations the answers "
    "count. Default: that of the run's data.",
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kiara-slm")
def main() -> None:
    """Train a small language model for the device it will run on, and ship it as one folder."""
    from kiara.console import log_to_console

    log_to_console()


main.add_command(report)
main.add_command(compare)


@main.command()
@CONFIG
@SETTINGS
def config(config_file: Path | None, settings: tuple[str, ...]) -> None:
    """Print every setting and what it means."""
    from kiara.config import config_yaml, load_config

    click.echo(config_yaml(load_config(config_file, settings)), nl=False)


@main.command()
@click.argument("source", required=False)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--tokenizer",
    metavar="RUN_OR_CHECKPOINT",
    type=click.Path(path_type=Path),
    help="Use the tokenizer of this checkpoint, to train from it. Default: train one on the text.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="ray: on the cluster of RAY_ADDRESS, by Ray Data; the same bytes.",
)
@CONFIG
@SETTINGS
def prepare(
    source: str | None,
    out: Path,
    tokenizer: Path | None,
    engine: Engine,
    config_file: Path | None,
    settings: tuple[str, ...],
) -> None:
    """Turn text into token files.

    SOURCE is a text file, a folder, a quoted glob, a .jsonl or .parquet file, or `stdlib`; .gz and .zst files are read,
    too. Several sources with weights are given as data.mix in the YAML file of --config instead. With --tokenizer and
    --set data.format=chat or preference, records are conversations or preferences to teach a checkpoint.
    """
    from kiara import face

    check_prepare(settings)
    face.prepare(source, out, settings, config_file, tokenizer, engine)


@main.command()
@CONFIG
@SETTINGS
@click.option("--out", type=click.Path(path_type=Path), help="Run folder. Default: a new one in runs/.")
@click.option("--resume", is_flag=True, help="Continue from the newest checkpoint of --out, if there is one.")
@click.option(
    "--branch",
    metavar="RUN_OR_CHECKPOINT",
    type=click.Path(path_type=Path),
    help="Start from this checkpoint, or the newest one of this run: its weights, optimizer state, step and data. "
    "Its settings are kept, except those that --set changes.",
)
@click.option(
    "--init-from",
    metavar="RUN_OR_CHECKPOINT",
    type=click.Path(path_type=Path),
    help="Teach this checkpoint: start from its weights, with its shape and tokenizer. --set adapt.rank=16 trains "
    "adapters (LoRA) only.",
)
@click.option(
    "--fit",
    metavar="BUDGET",
    help="Choose the shape for a device like this one, such as '30MB, 20 ms a token' or '50 tokens/s': the largest "
    "whose bundle (for training.quantize, else int8) keeps to it.",
)
@click.pass_context
def train(
    ctx: click.Context,
    config_file: Path | None,
    settings: tuple[str, ...],
    out: Path | None,
    resume: bool,
    branch: Path | None,
    init_from: Path | None,
    fit: str | None,
) -> None:
    """Train a model.

    Without options: the default model, on the Python standard library. On several GPUs: torchrun -m kiara train ...
    """
    from kiara import face

    if resume and out is None:
        raise click.UsageError("--resume: name the run to continue with --out RUN")
    if not face.train(out or _new_run(config_file), settings, config_file, resume, branch, fit, init_from):
        ctx.exit(CODES[signal.SIGINT])


@main.command("import")
@click.argument("source", metavar="PATH")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Checkpoint folder to write.")
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="Folder or file of a tokenizer, for nanoGPT, llama2.c."
)
def import_(source: str, out: Path, tokenizer: Path | None) -> None:
    """Import a pretrained model.

    PATH is a Hugging Face folder (config.json, *.safetensors, tokenizer.json or tokenizer.model), a GGUF file, or
    hf:OWNER/NAME[@REVISION][:FILE.gguf], which is fetched from the hub; or a checkpoint of nanoGPT or llama2.c.
    docs/models.md lists the families. The result is an ordinary checkpoint.
    """
    from kiara import face

    face.import_model(source, out, tokenizer)


@main.command()
@SOURCE
@click.option("--to", required=True, help="Source of the text whose tokens must stay, or a prepared folder.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Checkpoint folder to write.")
@click.option("--no-measure", is_flag=True, help="Do not time decode steps before and after.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def trim(source: Path, to: str, out: Path, no_measure: bool, as_json: bool) -> None:
    """Drop the vocabulary entries that a text never uses.

    That text is tokenized as before, and any other still can be. All bytes and special tokens stay.
    """
    from kiara import face

    found = face.trim(source, to, out, not no_measure)
    if as_json:
        click.echo(json_text(found))
        return
    before, after = found["before"], found["after"]
    click.echo(f"{out}: {after['vocab_size']:,} of {before['vocab_size']:,} entries; the text uses {found['used']:,}")
    for name, unit, scale in (("int8_bytes", "MB at int8", 1e-6), ("int4_bytes", "MB at int4", 1e-6),
                              ("int8_step_seconds", "ms per token at int8", 1e3)):  # fmt: skip
        if name in after:
            change = after[name] / before[name] - 1
            click.echo(f"  {after[name] * scale:.1f} {unit} (before: {before[name] * scale:.1f}, {change:+.1%})")


@main.command()
@SOURCE
@TEXT
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(source: Path, text: str | None, as_json: bool) -> None:
    """Evaluate a checkpoint on held-out text.

    Runs in PyTorch at float32. A run stands for its best checkpoint.
    """
    from kiara import face

    metrics = face.evaluate(source, text)
    if as_json:
        click.echo(json_text(metrics.named("")))
        return
    click.echo(
        f"loss {metrics.loss:.4f}  perplexity {metrics.perplexity:.2f}  next-token accuracy {metrics.accuracy:.1%}  "
        f"{metrics.bits_per_byte:.4f} bits per byte  ({metrics.tokens:,} tokens)"
    )


@main.command()
@SOURCE
@generate_options
def generate(source: Path, **options: Any) -> None:
    """Continue a prompt with a checkpoint.

    Runs in PyTorch, the reference for bundles. A run stands for its best checkpoint.
    """
    from kiara import face

    run_generate(face.load(source), **options)


@main.command()
@SOURCE
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Bundle folder to write.")
@click.option(
    "--quantize",
    type=click.Choice([variant.choice for variant in VARIANTS]),
    multiple=True,
    default=[VARIANTS[0].choice],
    show_default=True,
    help="Variant to export; may be repeated. " + " ".join(f"{v.choice}: {v.summary}." for v in VARIANTS),
)
@click.option(
    "--text",
    help="Source of held-out text to evaluate the variants on, or a prepared folder. Default: the validation split of "
    "the run's data. Required for an imported checkpoint, which has no text of its own.",
)
@click.option(
    "--calibration",
    help=f"Source of text to calibrate {_names_of('calibrated')} on. Default: the training split of the run's data, or "
    "for an imported checkpoint the first quarter of --text.",
)
@click.option(
    "--budget",
    metavar="SIZE",
    help=f"Largest size of the {_names_of('mixed')} graph, such as 40MB: as many matrices as fit keep 8 bits.",
)
@click.option(
    "--max-bpb-loss",
    metavar="[VARIANT=]PERCENT",
    multiple=True,
    help="Largest relative loss of bits per byte, such as 0.5% or int4=2%; int4 keeps matrices at 8 bits to meet it. "
    "Without a variant it applies to all, and exceeds a default only if a single lossy variant is exported. "
    f"[default: {_default_losses()}]",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Fail if a variant loses too much. By default it is quantized more finely, or left out.",
)
@click.option(
    "--check-with", metavar="RUNTIMES", help="Compare greedy tokens with genai, transformersjs, or both (a,b)."
)
@click.option("--sign-key", type=click.Path(path_type=Path), help="Ed25519 private key, PEM, to sign the bundle with.")
@click.option("--embeddings", is_flag=True, help="Let the bundle embed texts, too: `kiara-run embed`, /v1/embeddings.")
def export(
    source: Path, out: Path, quantize: tuple[str, ...], text: str | None, calibration: str | None, budget: str | None,
    max_bpb_loss: tuple[str, ...], strict: bool, check_with: str | None, sign_key: Path | None, embeddings: bool,
) -> None:  # fmt: skip
    """Export a checkpoint to a verified bundle.

    A run stands for its best checkpoint.
    """
    from kiara import face

    names = {variant.choice: variant.name for variant in VARIANTS}
    found = face.export(
        source,
        out,
        [names[choice] for choice in quantize],
        text=text,
        calibration=calibration,
        budget=size_of("--budget", budget),
        max_bpb_loss=losses_of("--max-bpb-loss", max_bpb_loss),
        strict=strict,
        check_with=list(dict.fromkeys(name.strip() for name in check_with.split(","))) if check_with else [],
        sign_key=sign_key,
        embeddings=embeddings,
    )
    for name, figures in found.items():
        click.echo(f"{out} {figures_line(name, figures)}")


def _new_run(config_file: Path | None) -> Path:
    stem = config_file.stem if config_file else "default"
    for number in range(1, 10_000):
        folder = Path("runs", stem if number == 1 else f"{stem}-{number}")
        if not folder.exists():
            return folder
    raise UserError("runs", "no free name for a new run", "choose one with --out")
