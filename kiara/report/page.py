"""A single HTML page that compares runs: curves, samples, settings, data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kiara.files import write_text
from kiara.report.charts import COLOURS, draw, draw_loss, svg
from kiara.report.records import RunRecords, read_run
from kiara_runtime.errors import UserError

MARK = "<!doctype html><!-- kiara report -->\n"
SAMPLES = 8  # per run, spread over its validations
# name in the records, axis, noisy, logarithmic
CHARTS = (
    ("val_bits_per_byte", "validation, bits per byte", False, False),
    ("learning_rate", "learning rate", False, False),
    ("gradient_norm", "norm of the gradient", True, True),
    ("tokens_per_second", "tokens a second", True, False),
    ("memory_mib", "memory, MiB", False, False),
)
STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5c6675; --line: #dfe4ea; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 75rem; margin: 2rem auto; }
body { padding: 0 1.5rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem 1.4rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1rem; }
.charts .wide { grid-column: 1 / -1; } svg { width: 100%; height: auto; }
pre { background: #f5f7f9; padding: .7rem 1rem; overflow-x: auto; white-space: pre-wrap; margin: .3rem 0 1rem; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .45em; }
summary { cursor: pointer; color: var(--soft); }
"""


def write_page(folders: Sequence[Path], out: Path) -> None:
    """Write the page to the file `out`; raises UserError if another kind of file is there."""
    runs = [read_run(folder) for folder in folders]
    if out.exists() and not _is_page(out):
        raise UserError(f"--out {out}", "exists and is not a report", "choose another file")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, MARK + "\n".join(_page(runs)) + "\n")


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MARK)) == MARK.encode()


def _page(runs: list[RunRecords]) -> Iterator[str]:
    title = ", ".join(run.name for run in runs)
    yield f'<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    yield f"<h1>{escape(title)}</h1>"
    yield from _summary(runs)
    yield '<h2>Curves</h2><div class="charts">'
    yield from _charts(runs)
    yield "</div>"
    for run in runs:
        if run.samples:
            yield f"<h2>What {escape(run.name)} wrote</h2>"
            shown = sorted({i * (len(run.samples) - 1) // max(1, SAMPLES - 1) for i in range(SAMPLES)})
            for step, text in (run.samples[i] for i in shown if i < len(run.samples)):
                yield f"<div>step {step}</div><pre>{escape(text)}</pre>"
    yield from _settings(runs)
    cards = {run.name: _table(list(_data_card(run.data))) for run in runs if run.data}
    for card in dict.fromkeys(cards.values()):
        names = ", ".join(name for name, its in cards.items() if its == card)
        yield f"<h2>Data of {escape(names)}</h2>{card}"
    yield "</html>"


def _summary(runs: list[RunRecords]) -> Iterator[str]:
    rows = [["run", "steps", "validation, bits per byte", "accuracy", "time"]]
    for i, run in enumerate(runs):
        final = "final_val_" if run.last("final_val_loss") is not None else "val_"
        steps, _ = run.curve("loss")
        seconds = sum(run.curve("step_seconds")[1])
        rows.append([
            f'<span class="dot" style="background:{COLOURS[i % len(COLOURS)]}"></span>{escape(run.name)}',
            f"{max(steps, default=0):,}",
            _number(run.last(f"{final}bits_per_byte"), "{:.4f}"),
            _number(run.last(f"{final}accuracy"), "{:.1%}"),
            f"{seconds / 60:.1f} min" if seconds else "",
        ])  # fmt: skip
    yield _table(rows, header=True, escaped=True)


def _charts(runs: list[RunRecords]) -> Iterator[str]:
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    draw_loss(figure.subplots(), runs)
    yield f'<div class="wide">{svg(figure)}</div>'
    for name, label, noisy, log in CHARTS:
        if any(run.curve(name)[0] for run in runs):
            figure = Figure(figsize=(5.4, 3.2), layout="constrained")
            draw(figure.subplots(), runs, name, label, noisy, log)
            yield f"<div>{svg(figure)}</div>"


def _settings(runs: list[RunRecords]) -> Iterator[str]:
    """All settings, preceded by those that differ between runs."""
    flat = [{f"{part}.{key}": value for part, keys in run.settings.items() for key, value in keys.items()}
            for run in runs]  # fmt: skip
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    differ = [name for name in names if len({str(settings.get(name)) for settings in flat}) > 1]
    header = ["setting", *(run.name for run in runs)]
    rows = {name: [name, *(str(settings.get(name, "")) for settings in flat)] for name in names}
    if differ:
        yield "<h2>Settings that differ</h2>" + _table([header, *(rows[name] for name in differ)], header=True)
    everything = _table([header, *rows.values()], header=True)
    yield f"<h2>Settings</h2><details><summary>all {len(names)}</summary>{everything}</details>"


def _data_card(data: dict[str, Any]) -> Iterator[list[str]]:
    yield ["source", str(data.get("source"))]
    for name, split in data["splits"].items():
        documents, size, tokens = split.get("documents", 0), split.get("bytes", 0), split.get("tokens", 0)
        each = f", {size / tokens:.2f} bytes a token" if tokens else ""
        yield [name, f"{documents:,} documents, {size / 1e6:,.1f} MB, {tokens:,} tokens{each}"]
    for used in data.get("sources", []):
        yield [f"from {used['source']}", f"{used['documents']:,} documents, {used['bytes'] / 1e6:,.1f} MB"]
    for name, count in data.get("dropped", {}).items():
        yield [f"dropped: {name}", f"{count:,} documents"]
    if replaced := data.get("replaced"):
        yield ["characters replaced", f"in {replaced:,} documents"]


def _table(rows: list[list[str]], header: bool = False, escaped: bool = False) -> str:
    """escaped: whether the cells are HTML already."""
    text: list[str] = []
    for i, row in enumerate(rows):
        kind = "th" if header and i == 0 else "td"
        cells = "".join(f"<{kind}>{cell if escaped else escape(cell)}</{kind}>" for cell in row)
        text.append(f"<tr>{cells}</tr>")
    return f"<table>{''.join(text)}</table>"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
