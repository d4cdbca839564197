"""A shape for a budget: what is proposed keeps to it, in the bundle that is exported in the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from kiara.config.load import load_config
from kiara.config.sections import TrainingConfig
from kiara_export.fit import Budget, Costs, _largest, _shapes, fit, rates, step_seconds
from kiara_runtime.bundle.variants import VARIANTS
from kiara_runtime.errors import UserError

FEW = ("training.max_steps=2", "training.batch_size=2", "training.eval_tokens=512", "training.sample_tokens=0")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30MB", Budget(30_000_000, None)),
        ("1.5 GB", Budget(1_500_000_000, None)),
        ("20 ms a token", Budget(None, 0.02)),
        ("0.5ms", Budget(None, 0.0005)),
        ("50 tokens/s", Budget(None, 0.02)),
        ("900kB, 4 ms per token", Budget(900_000, 0.004)),
        ("100 tokens per second, 7 MB", Budget(7_000_000, 0.01)),
    ],
)
def test_budgets_are_sizes_times_and_speeds(text: str, expected: Budget) -> None:
    assert Budget.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "30", "30 mb", "-3MB", "0MB", "20 ms, 30 tokens/s", "3MB, 4MB", "3MB 4ms", "1e3MB"]
)
def test_anything_else_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(UserError, match=r"--fit: .*write a size, a time or a speed"):
        Budget.parse(text)


@given(
    size=st.integers(400_000, 400_000_000),
    variant=st.sampled_from([v for v in VARIANTS if v.blocks]),
    fast=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_the_largest_shape_within_the_budget_is_chosen(size: int, variant: object, fast: bool) -> None:
    shapes = [*_shapes(load_config(environ={}).model, None, variant, True)]  # type: ignore[arg-type]
    costs = Costs(1e-5, 1e-5, 1e-10) if fast else None
    budget = Budget(size, 0.01 if fast else None)
    chosen = _largest(shapes, budget, costs)
    assert chosen.bundle <= size and (costs is None or costs.of(chosen) <= 0.01)
    larger = [shape for shape in shapes if shape.parameters > chosen.parameters]
    assert all(shape.bundle > size or (costs is not None and costs.of(shape) > 0.0097) for shape in larger)


def test_a_smaller_budget_than_any_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"--fit: the smallest model needs 0\.\d+ MB; allow more"):
        fit(Budget(bytes=10_000), load_config(environ={}))


def test_rates_fall_with_the_width_unless_they_are_given() -> None:
    config = load_config(assignments=["model.hidden_size=1024", "training.learning_rate=0.003"], environ={})
    narrow = load_config(assignments=["model.hidden_size=64", "training.learning_rate=0.003"], environ={})
    default = TrainingConfig().embedding_learning_rate
    found = rates(narrow.model, narrow.training)["training.embedding_learning_rate"]
    assert found == pytest.approx(default * 2**0.5, rel=0.01)  # no more than that of half the default's width
    assert rates(config.model, config.training) == {"training.embedding_learning_rate": default / 2}


@pytest.mark.parametrize(("budget", "quantize"), [("1MB", "none"), ("700kB", "int4")])
@pytest.mark.slow
def test_the_exported_bundle_keeps_to_the_budget(
    budget: str, quantize: str, corpus: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    options = [part for setting in (*FEW, f"data.train={corpus}") for part in ("--set", setting)]
    options += ["--set", f"training.quantize={quantize}", "--set", f"data.prepared_dir={tmp_path}"]
    trained = kiara("train", "--out", tmp_path / "run", "--fit", budget, *options)
    assert trained.exit_code == 0 and "Fits: hidden_size" in trained.stderr, trained.stderr
    variant = "int8" if quantize == "none" else quantize
    exported = kiara("export", tmp_path / "run", "--out", tmp_path / "bundle", "--quantize", variant)
    assert exported.exit_code == 0, exported.stderr
    limit = Budget.parse(budget).bytes
    assert limit is not None
    files = [file for file in (tmp_path / "bundle").rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    assert 0.6 * limit < size <= limit


@pytest.mark.slow
def test_a_time_is_measured_with_the_proposed_graph() -> None:
    config = load_config(environ={})
    shape = fit(Budget.parse("3MB, 1000 ms a token"), config, vocab_size=1024)
    assert shape.bundle <= 3_000_000 and shape.vocab_size == 1024
    assert 0 < step_seconds(shape) < 1.0
    with pytest.raises(UserError, match="the smallest model needs"):
        fit(Budget(bytes=3_000_000, seconds=1e-9), config, vocab_size=1024)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--set", "model.hidden_size=64"], "model.hidden_size=64: has no effect together with --fit"),
        (["--set", "training.quantize=int8-dynamic"], "training.quantize: 'int8-dynamic' is not measured by --fit"),
        (["--resume"], "--fit: has no effect on a run that exists"),
        (["--branch", "{run}"], "--fit: has no effect on a run that exists"),
    ],
)
def test_options_that_contradict_a_fit_are_refused(
    options: list[str], expected: str, run: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    words = [option.format(run=run) for option in options]
    result = kiara("train", "--out", tmp_path / "new", "--fit", "3MB", *words)
    assert result.exit_code == 1 and expected in result.stderr and not (tmp_path / "new").exists()
