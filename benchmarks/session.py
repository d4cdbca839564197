"""Record the demo as a picture: docs/session.svg, lines that appear one after another, and the receipt's plot.

The lines are those of a real run, and their pauses too, up to a second. Takes as long as `make demo`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

DOCS = Path(__file__).parents[1] / "docs"
BIN = Path(sys.executable).parent
PROMPT = r"class Stack:\n    def push"
COMMANDS = (
    "kiara train --config {config} --out runs/demo",
    "kiara export runs/demo --quantize int8 --out bundles/demo",
    f"printf '{PROMPT}' | kiara-run generate bundles/demo --echo --max-tokens 120 --temperature 0.7 --seed 1",
    "kiara-run info bundles/demo",
)
FIRST, LAST = 9, 4  # lines of a long output that are shown
COLUMNS, LINE, WIDTH, MARGIN = 108, 17, 7.3, 20  # characters, pixels
LONGEST_PAUSE, AFTER_COMMAND = 1.0, 0.6  # seconds
STYLE = """
  text { fill: #1d2126; font: 12px ui-monospace, "DejaVu Sans Mono", monospace; }
  .back { fill: #ffffff; stroke: #d9dbd8; }
  .command { fill: #2c5d94; font-weight: bold; } .left-out { fill: #59626c; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e7ea; }
    .back { fill: #1b1f23; stroke: #33393f; }
    .command { fill: #93bbe8; }
    .left-out { fill: #a0a9b2; }
  }
  @keyframes appear { from { opacity: 0; } }
  text { animation: appear 0.1s both; }
  @media (prefers-reduced-motion: reduce) { text { animation: none; } }
"""


class Line(NamedTuple):
    """A line of the picture. style: a class of STYLE. pause: seconds before it appears."""

    text: str
    style: str
    pause: float


def recorded(command: str, folder: Path) -> list[Line]:
    """The lines of a command, and how long each took."""
    shown = textwrap.wrap(f"$ {command}", COLUMNS - 2, subsequent_indent="    ", drop_whitespace=False)
    lines = [Line(part, "command", AFTER_COMMAND) for part in (*(f"{part}\\" for part in shown[:-1]), shown[-1])]
    before = began = time.monotonic()
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", f'export PATH="{BIN}:$PATH"; {command}'],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    for text in process.stdout:
        now = time.monotonic()
        for part in textwrap.wrap(text.rstrip("\n"), COLUMNS, subsequent_indent="    ", drop_whitespace=False) or [""]:
            lines.append(Line(part, "output", min(now - before, LONGEST_PAUSE)))
        before = now
    if process.wait():
        sys.exit("\n".join(line.text for line in lines))
    hidden = len(lines) - FIRST - LAST - len(shown) + 1
    if hidden > LAST:
        told = f"⋮ {hidden} lines, {time.monotonic() - began:.0f} s in all"
        lines[FIRST:-LAST] = [Line(told, "left-out", LONGEST_PAUSE)]
    return [*lines, Line("", "output", 0)]


def drawn(lines: list[Line]) -> str:
    """The picture as SVG."""
    height, width = LINE * len(lines) + 2 * MARGIN, WIDTH * COLUMNS + 2 * MARGIN
    parts, at = [], 0.0
    for row, line in enumerate(lines):
        at += line.pause
        place = f'x="{MARGIN}" y="{MARGIN + LINE * (row + 0.75):g}" style="animation-delay: {at:.2f}s"'
        parts.append(f'<text class="{line.style}" {place} xml:space="preserve">{escape(line.text)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img">\n'
        f"<title>A model is trained, exported and run</title>\n<style>{STYLE}</style>\n"
        f'<rect class="back" x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1:g}" rx="8"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def main(config: str = "small") -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        lines = [line for command in COMMANDS for line in recorded(command.replace("{config}", config), folder)]
        (DOCS / "session.svg").write_text(drawn(lines[:-1]), "utf-8")
        shutil.copyfile(folder / "bundles/demo/receipt.png", DOCS / "receipt.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
