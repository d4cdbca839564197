"""Which shape and how many bits learn most, at equal bundle bytes and equal training seconds.

python benchmarks/equal_bytes.py [--megabytes 3 6 12] [--seconds 240] [--out benchmarks/results/equal_bytes]

For each size, int8, int4 and int2: the largest model whose bundle is that small, trained as usual, or with the rounding
in its loop. Seconds of a step of every model are measured in turn first, and each is trained for as many steps as the
seconds allow. Then each is exported: bits per byte are the receipt's, and decode speed is measured on the bundles in
turn. What is in the output folder already is not repeated, so that the script can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kiara
import kiara_runtime
from kiara.config import Config, load_config
from kiara.data import dataset_of
from kiara.training import trainer
from kiara.training.run import Run
from kiara_export import fit
from kiara_runtime.bundle import find_variant
from kiara_runtime.errors import UserError

VARIANTS = ("int8", "int4", "int2")
ROUNDED = 0.2  # of the steps, with the rounding in the loop
STEP_ROUNDS, ROUNDS, TOKENS = 4, 5, 128
Found = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """A cell of the table."""

    megabytes: float
    variant: str
    loop: bool

    @property
    def name(self) -> str:
        return f"{self.megabytes:g}MB-{self.variant}-{'loop' if self.loop else 'plain'}"

    def settings(self, data: Path, **others: Any) -> dict[str, Any]:
        """Shape and rates as `kiara train --fit` chooses them."""
        fixed = {
            "data.prepared_dir": str(data), "training.compile": "never", "training.sample_tokens": 0,
            "training.quantize": self.variant if self.loop else "none", "training.quantize_from": 1 - ROUNDED,
        }  # fmt: skip
        config, variant = load_config(None, _assignments(fixed)), find_variant(self.variant)
        assert variant is not None
        shapes = [*fit._shapes(config.model, None, variant, self.loop)]  # pyright: ignore[reportPrivateUsage]
        budget = fit.Budget(bytes=round(1e6 * self.megabytes))
        shape = fit._largest(shapes, budget, None)  # pyright: ignore[reportPrivateUsage]
        return {**fixed, **shape.settings(), **fit.rates(shape.model, config.training), **others}

    def config(self, data: Path, **others: Any) -> Config:
        return load_config(None, _assignments(self.settings(data, **others)))


def _assignments(settings: dict[str, Any]) -> list[str]:
    return [f"{path}={value}" for path, value in settings.items()]


def step_seconds(cells: list[Cell], data: Path) -> dict[str, float]:
    """Seconds of a mean step of each, of the fastest rounds, as other programs can only add to them.

    Cells of one shape share the seconds of a step without rounding.
    """
    exact, rounding = dict[str, float](), dict[str, float]()
    shapes = {cell.name: str(cell.config(data).model) for cell in cells}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(STEP_ROUNDS):
            for cell in cells:
                config = cell.config(data)
                run = Run(Path(folder, f"{cell.name}-{turn}"), config, resume=False)
                made = trainer.Trainer(run, dataset_of(config), trainer.ALONE)
                _measure(made, exact, shapes[cell.name])
                if cell.loop:
                    made.step = config.training.max_steps - 9
                    _measure(made, rounding, cell.name)
                run.close()
    return {
        name: (1 - ROUNDED) * exact[shape] + ROUNDED * rounding.get(name, exact[shape])
        for name, shape in shapes.items()
    }


def _measure(made: trainer.Trainer, seconds: dict[str, float], name: str) -> None:
    """Take two steps; the fastest one counts."""
    for _ in range(2):
        started = time.perf_counter()
        made._step()  # pyright: ignore[reportPrivateUsage]
        seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - started)


def trained(cell: Cell, steps: int, data: Path, out: Path) -> dict[str, Any]:
    """Train and export; figures of the training and of the receipt."""
    run, bundle = out / cell.name / "run", out / cell.name / "bundle"
    every = {"training.max_steps": steps, "training.eval_every": steps, "training.checkpoint_every": steps}
    config = cell.config(data, **every)
    made = {"steps": steps, "tokens": steps * config.training.sequences * config.sequence_length}
    if not kiara.train(run, cell.settings(data, **every), resume=True):
        raise SystemExit(f"{cell.name} was interrupted; the same command continues it")
    try:
        figures = kiara.export(run, bundle, [cell.variant], max_bpb_loss=1.0)
    except UserError as error:
        return {**made, "refused": str(error)}
    if cell.variant not in figures:
        return {**made, "refused": json.loads((bundle / "receipt.json").read_text("utf-8"))["left_out"][cell.variant]}
    receipt = figures[cell.variant]
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    parameters = round(receipt["size_bytes"] / receipt["bytes_per_parameter"])
    return {**made, "bytes": size, "parameters": parameters, "bits_per_byte": receipt["bits_per_byte"]}


def decode_speeds(bundles: dict[str, Path]) -> dict[str, float]:
    """Tokens per second of each, the median of rounds in turn."""
    speeds: dict[str, list[float]] = {name: [] for name in bundles}
    with ExitStack() as stack:
        models = {name: stack.enter_context(closing(kiara_runtime.load(path))) for name, path in bundles.items()}
        for _ in range(ROUNDS):
            for name, model in models.items():
                started = time.perf_counter()
                model.generate("def ", max_tokens=TOKENS, seed=1, ignore_eos=True)
                speeds[name].append(TOKENS / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in speeds.items()}


def table(found: Found, cells: list[Cell]) -> str:
    lines = [
        "| bundle | variant | trained | parameters | tokens | bundle, MB | bits per byte | tokens/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in (cell for cell in cells if cell.name in found):
        figures = found[cell.name]
        start = f"| {cell.megabytes:g} MB | {cell.variant} | {'in the loop' if cell.loop else 'plain'} |"
        if "refused" in figures:
            lines.append(f"{start} | {figures['tokens']:,} | not exported: {figures['refused']} | | |")
            continue
        size, speed = figures["bytes"] / 1e6, figures.get("tokens_per_second", 0)
        lines.append(
            f"{start} {figures['parameters'] / 1e6:.1f}M | {figures['tokens']:,} | {size:.2f} | "
            f"{figures['bits_per_byte']:.4f} | {speed:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[3, 6, 12])
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/equal_bytes"))
    arguments = parser.parse_args()
    out, data = arguments.out, arguments.out / "data"
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "found.json"
    found: Found = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    cells = [Cell(size, name, loop) for size in arguments.megabytes for name in VARIANTS for loop in (False, True)]
    if unmeasured := [cell for cell in cells if cell.name not in found]:
        for name, seconds in step_seconds(unmeasured, data).items():
            found[name] = {"steps": round(arguments.seconds / seconds)}
    for cell in (cell for cell in cells if "tokens" not in found[cell.name]):
        kept.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        found[cell.name] = trained(cell, found[cell.name]["steps"], data, out)
        print(cell.name, found[cell.name], flush=True)
    bundles = {cell.name: out / cell.name / "bundle" for cell in cells if "bytes" in found[cell.name]}
    for name, speed in decode_speeds(bundles).items():
        found[name]["tokens_per_second"] = speed
    kept.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(table(found, cells))


if __name__ == "__main__":
    main()
