"""The commands that write pages: reports on runs, and comparisons of models."""

from __future__ import annotations

from pathlib import Path

import click

from kiara_runtime.system import json_text


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Page to write. Default for a single run: RUN/report.html."
)
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write a page that compares runs: curves, samples, settings, data.

    The page is a single HTML file.
    """
    from kiara.report import write_page

    first, *others = runs
    if out is None and others:
        raise click.UsageError("--out: name the page to write, as there are several runs")
    page = out or first / "report.html"
    write_page(runs, page)
    click.echo(page)


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--prompts", type=click.Path(path_type=Path), required=True, help="Text or JSON lines with prompts.")
@click.option("--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="Most tokens of an answer.")
@click.option(
    "--out", type=click.Path(path_type=Path), default="compare.html", show_default=True, help="Page to write."
)
@click.option("--json", "as_json", is_flag=True, help="Also print one JSON object.")
def compare(models: tuple[Path, ...], prompts: Path, max_tokens: int, out: Path, as_json: bool) -> None:
    """Show the answers of several models to the same prompts side by side.

    Models are checkpoints, runs or bundles. PROMPTS has a prompt a line, or records with `messages`, or `prompt` and
    `completion`; how likely each model finds the given answer is shown, too.
    """
    from kiara import face

    found = face.compare(models, prompts, max_tokens, out)
    click.echo(json_text(found.json()) if as_json else out)
