"""The table and the plot that `side_by_side.py` leaves in benchmarks/results/."""

import json
from pathlib import Path
from typing import Any

from peers import NEW, PROMPT, THREADS

RESULTS = Path(__file__).parent / "results"


def write(facts: dict[str, Any], rows: list[dict[str, Any]], model: str) -> str:
    """Write the table, the plot and all that was measured; returns the table."""
    RESULTS.mkdir(exist_ok=True)
    table = _report(facts, rows)
    (RESULTS / "side_by_side.md").write_text(table, "utf-8")
    (RESULTS / "side_by_side.json").write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n", "utf-8")
    _plot(rows, f"{model}, {facts['machine']['cpu']}, {THREADS} threads", RESULTS / "side_by_side.png")
    return table


def _report(facts: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    cpu, cores, system = facts["machine"].values()
    columns = {
        "decode tokens/s": "{decode:.1f}", "Kiara is": "{decode_ratio:.2f}x", "prefill tokens/s": "{prefill:.0f}",
        "Kiara is ": "{prefill_ratio:.2f}x", "load s": "{load:.2f}", "peak MiB": "{memory:.0f}",
        "weights MB": "{megabytes:.1f}", "as float32": "{same}",
    }  # fmt: skip
    cells = "| {name} | " + " | ".join(columns.values()) + " |"
    ceiling = (
        "{name}: a token reads {megabytes:.1f} MB. Decode is {of_large:.2f} of what reading 1 GiB ({large:.1f} GB/s)\n"
        "and {of_same:.2f} of what reading a buffer of that size again and again ({same:.1f} GB/s) would allow.\n"
    )
    return "\n".join(
        [
            f"{facts['date']}: {cpu}, {cores} cores, {system}. {THREADS} threads, prompts of {PROMPT} tokens,",
            f"{NEW} more after the first, greedily; medians of {facts['rounds']} rounds.\n",
            f"| runtime | {' | '.join(columns)} |\n|---|" + "--:|" * len(columns),
            *(cells.format(**row) for row in rows),
            "\n`Kiara is`: how many times as fast, at as many bits (int8 beside float32) and one token a step; median",
            "of the rounds' ratios. `as float32`: greedy tokens before the first that differs from transformers'.\n",
            *(ceiling.format(**part) for part in facts["ceilings"]),
            f"Others took up to {max(run['others'] for row in rows for run in row['rounds']):.2f} cores of a run.\n",
            "Versions: " + ", ".join(map(" ".join, facts["versions"].items())) + ".\n",
        ]
    )


def _plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 1.2 + 0.36 * len(rows)), sharey=True, layout="constrained")
    names, plain = [row["name"] for row in rows], {"kiara": "#d9480f"}
    colours = ["#f4a27a" if "guessing" in row["name"] else plain.get(row["kind"], "#adb5bd") for row in rows]
    for panel, key in zip(panels, ("decode", "prefill"), strict=True):
        bars = panel.barh(names, [row[key] for row in rows], color=colours, height=0.72)
        panel.bar_label(bars, fmt="{:,.0f}", padding=4, fontsize=9)
        panel.set_title(f"{key}, tokens/s", loc="left", fontsize=11)
        panel.spines[["top", "right", "bottom"]].set_visible(False)
        panel.tick_params(left=False, bottom=False, labelbottom=False)
        panel.margins(x=0.12)
    panels[0].invert_yaxis()
    for label, row in zip(panels[0].get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row["kind"] == "kiara" else "normal")
    figure.suptitle(title, fontsize=10, color="#495057")
    figure.savefig(path, dpi=150)


def same_start(found: list[int], expected: list[int]) -> int:
    """How many tokens are the same up to the first that is not."""
    return next((i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b), len(expected))
