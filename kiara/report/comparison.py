"""A single HTML page with the answers of several models side by side."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

from kiara.evaluation import Comparison
from kiara.files import write_text
from kiara.report.charts import COLOURS
from kiara.report.page import STYLE
from kiara_runtime.errors import UserError

MARK = "<!doctype html><!-- kiara compare -->\n"
_STYLE = """
.prompt { margin: 2rem 0 .4rem; font-weight: 600; white-space: pre-wrap; }
.prompt .role { color: var(--soft); font-weight: 400; margin-right: .6em; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 0 1.2rem; }
.answers div > span { color: var(--soft); } .answers pre { min-height: 2.2em; margin-top: .15rem; }
.reference pre { background: none; border: 1px solid var(--line); }
"""


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write the page to the file `out`; raises UserError if another kind of file is there."""
    check_page(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, MARK + "\n".join(_page(comparison)) + "\n")


def check_page(out: Path) -> None:
    """Raise UserError if another kind of file is at `out`."""
    if out.exists() and not _is_page(out):
        raise UserError(f"--out {out}", "exists and is not a comparison", "choose another file")


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MARK)) == MARK.encode()


def _page(comparison: Comparison) -> Iterator[str]:
    title = " and ".join(comparison.answers)
    yield f'<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}{_STYLE}</style>'
    yield f"<h1>{escape(title)}</h1>"
    if any(prompt.reference for prompt in comparison.prompts):
        yield "<p>Reference answers, mean over the prompts:</p>"
        yield "<table><tr><th>model</th><th>nats per token</th><th>bits per byte</th></tr>"
        for name in comparison.answers:
            figures = (comparison.mean(name, figure) for figure in ("reference_loss", "reference_bits_per_byte"))
            cells = "".join(f"<td>{figure:.4f}</td>" for figure in figures if figure is not None)
            yield f"<tr><td>{_name(comparison, name)}</td>{cells}</tr>"
        yield "</table>"
    for i, prompt in enumerate(comparison.prompts):
        for message in prompt.messages:
            role = "" if message["role"] == "user" else f'<span class="role">{escape(message["role"])}</span>'
            yield f'<div class="prompt">{role}{escape(str(message.get("content") or ""))}</div>'
        yield '<div class="answers">'
        if prompt.reference:
            yield f'<div class="reference"><span>reference</span><pre>{escape(prompt.reference)}</pre></div>'
        for name, answers in comparison.answers.items():
            loss = answers[i].reference_loss
            told = "" if loss is None else f" <span>{loss:.2f} nats per token</span>"
            yield f"<div>{_name(comparison, name)}{told}<pre>{escape(answers[i].text.strip())}</pre></div>"
        yield "</div>"
    yield "</html>"


def _name(comparison: Comparison, name: str) -> str:
    colour = COLOURS[list(comparison.answers).index(name) % len(COLOURS)]
    return f'<span class="dot" style="background:{colour}"></span>{escape(name)}'
