"""`kiara`: text to tokens to weights to a bundle, a command each. Heavy imports wait for their command."""

from __future__ import annotations

import json
import re
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from kiara_runtime.commands.generate import generate_options, run_generate
from kiara_runtime.commands.main import Commands, figures_line
from kiara_runtime.errors import UserError
from kiara_runtime.system.console import json_text
from kiara_runtime.system.interrupts import CODES

CONFIG = click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML file of settings.")
SETTINGS = click.option(
    "--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Override one setting; may be repeated."
)
SOURCE = click.argument("source", metavar="RUN_OR_CHECKPOINT", type=click.Path(path_type=Path))
TEXT = click.option("--text", help="Source of held-out text; by default the validation split of the run's data.")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kiara-slm")
def main() -> None:
    """Train a small language model for the device it will run on, and ship it as one folder."""
    from kiara.console import log_to_console

    log_to_console()


@main.command()
@CONFIG
@SETTINGS
def config(config_file: Path | None, settings: tuple[str, ...]) -> None:
    """Print every setting and what it means."""
    from kiara.config.load import config_yaml, load_config

    click.echo(config_yaml(load_config(config_file, settings)), nl=False)


@main.command()
@click.argument("source")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@CONFIG
@SETTINGS
def prepare(source: str, out: Path, config_file: Path | None, settings: tuple[str, ...]) -> None:
    """Turn text into token files.

    SOURCE is a text file, a folder, a quoted glob, a .jsonl file, or `stdlib`.
    """
    from kiara.config.load import load_config
    from kiara.data.prepare import prepare_folder

    for setting in settings:
        section, _, name = setting.partition("=")[0].strip().partition(".")
        if section in ("model", "training") or (section, name) in (("data", "train"), ("data", "prepared_dir")):
            remedy = "SOURCE and --out say that here" if section == "data" else "give it to `kiara train`"
            raise click.UsageError(f"--set {setting}: has no effect on what is prepared; {remedy}")
    settings = (*settings, f"data.train={json.dumps(source, ensure_ascii=False)}")
    prepare_folder(load_config(config_file, settings), out)


@main.command()
@CONFIG
@SETTINGS
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; by default a new one below runs/.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of --out, if it has one.")
@click.pass_context
def train(
    ctx: click.Context, config_file: Path | None, settings: tuple[str, ...], out: Path | None, resume: bool
) -> None:
    """Train a model.

    With no options: the default one, on the Python standard library.
    """
    from kiara.checkpoints.checkpoint import trained_on
    from kiara.config.load import load_config
    from kiara.data.prepare import as_prepared, dataset_of
    from kiara.files import CONFIG_FILE
    from kiara.training.run import Run

    if resume and out is None:
        raise click.UsageError("--resume: name the run to go on with, --out RUN")
    folder = out or _new_run(config_file)
    own = resume and config_file is None and (folder / CONFIG_FILE).is_file()
    loaded = load_config(folder / CONFIG_FILE if own else config_file, settings)
    from kiara.training.trainer import check_settings, train

    check_settings(loaded)
    with closing(Run(folder, loaded if own else as_prepared(loaded), resume)) as run:
        # A run that goes on does so with the very data it began with, whatever has become of its source.
        dataset = trained_on(run.last.folder) if run.last else dataset_of(run.config)
        if not train(run, dataset):
            ctx.exit(CODES[signal.SIGINT])


@main.command("import")
@click.argument("source", metavar="PATH", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Checkpoint folder to write.")
def import_(source: Path, out: Path) -> None:
    """Bring a pretrained model in.

    PATH is a Hugging Face folder (config.json, *.safetensors, tokenizer.json) of a GPT-2, Llama, Mistral, Qwen2,
    Qwen3 or Arcee model, or a GGUF file of the Llama family. The result is an ordinary checkpoint.
    """
    from kiara.importing.importer import import_model

    import_model(source, out)


@main.command()
@SOURCE
@TEXT
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(source: Path, text: str | None, as_json: bool) -> None:
    """Judge a checkpoint on held-out text.

    In PyTorch at float32; of a run, the best checkpoint.
    """
    from kiara.evaluation.evaluate import evaluate_checkpoint

    metrics = evaluate_checkpoint(source, text)
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

    In PyTorch, the reference for bundles; of a run, the best checkpoint.
    """
    from kiara.checkpoints.checkpoint import TokenIds, find_checkpoint, load_model
    from kiara.evaluation.reference import reference_model

    folder = find_checkpoint(source)
    run_generate(reference_model(*load_model(folder), TokenIds.read(folder)), **options)


@main.command()
@SOURCE
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Bundle folder to write.")
@click.option(
    "--quantize", type=click.Choice(["int8", "int4", "int8-dynamic", "fp16", "none"]), multiple=True, default=["int8"],
    show_default=True, help="Variant to put in; repeat it for several. `none` is float32, the variant fp32.",
)  # fmt: skip
@TEXT
@click.option(
    "--calibration", help="Source of text to calibrate int4 and int8-dynamic on; by default the training split."
)
@click.option("--budget", metavar="SIZE", help="Of int4's graph, such as 40MB: what fits of it keeps 8 bits.")
@click.option(
    "--max-bpb-loss", metavar="PERCENT",
    help="Of any variant, such as 0.5%; int4 keeps 8 bits to hold it. [default: 0.3% int8 and int8-dynamic, 2% int4]",
)  # fmt: skip
@click.option(
    "--strict",
    is_flag=True,
    help="Refuse where a variant loses too much: by default it is made finer, or left out.",
)
@click.option(
    "--check-with", metavar="RUNTIMES", help="Compare greedy tokens with genai, transformersjs or both (a,b)."
)
@click.option("--sign-key", type=click.Path(path_type=Path), help="Ed25519 private key, PEM, to sign the bundle with.")
def export(
    source: Path, out: Path, quantize: tuple[str, ...], text: str | None, calibration: str | None, budget: str | None,
    max_bpb_loss: str | None, strict: bool, check_with: str | None, sign_key: Path | None,
) -> None:  # fmt: skip
    """Export a checkpoint to a verified bundle.

    Of a run, the best checkpoint.
    """
    from kiara_export.pipeline import CHECKS, Limit, Request, export

    if budget and "int4" not in quantize:
        raise click.UsageError("--budget is int4's: add --quantize int4")
    if calibration and not {"int4", "int8-dynamic"} & set(quantize):
        raise click.UsageError("--calibration is for int4 and int8-dynamic: add --quantize int4")
    if max_bpb_loss and set(quantize) == {"none"}:
        raise click.UsageError("--max-bpb-loss: float32 loses nothing: add --quantize int8 or another")
    checks = tuple(dict.fromkeys(name.strip() for name in check_with.split(","))) if check_with else ()
    for name in checks:
        if name not in CHECKS:
            raise click.UsageError(f"--check-with: {name!r} is none of {', '.join(CHECKS)}")
    request = Request(
        variants=tuple("fp32" if name == "none" else name for name in quantize),
        text=text,
        calibration=calibration,
        limit=Limit(_size("--budget", budget), _percent("--max-bpb-loss", max_bpb_loss)),
        strict=strict,
        check_with=checks,
        sign_key=sign_key,
    )
    for name, figures in export(source, out, request).items():
        click.echo(f"{out} {figures_line(name, figures)}")


def _size(option: str, value: str | None) -> int | None:
    """Bytes of a size such as 40MB; a megabyte is a million."""
    if value is None:
        return None
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kMG]?)B\s*", value)
    if not found or not 0 < float(found[1]) < 1e9:
        raise click.UsageError(f"{option}: {value!r} is no size; give one such as 40MB")
    return round(float(found[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[found[2]])


def _percent(option: str, value: str | None) -> float | None:
    """The part of a percentage such as 0.5%."""
    if value is None:
        return None
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*%\s*", value)
    if not found:
        raise click.UsageError(f"{option}: {value!r} is no percentage; give one such as 0.5%")
    return float(found[1]) / 100


def _new_run(config_file: Path | None) -> Path:
    stem = config_file.stem if config_file else "default"
    for number in range(1, 10_000):
        folder = Path("runs", stem if number == 1 else f"{stem}-{number}")
        if not folder.exists():
            return folder
    raise UserError("runs: ten thousand runs are there already; name one with --out")
