"""What an export refuses, quantises more finely or leaves out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

import kiara_export.candidates.makers
import kiara_export.pipeline
import kiara_export.quantize.gptq
import kiara_export.request
from kiara.checkpoints.checkpoint import find_checkpoint, load_model, trained_on
from kiara.grid import Grid
from kiara.model.gpt import GPT
from kiara_export.quantize.blocks import Blocks, round_to
from kiara_export.request import Request
from kiara_export.texts import texts_of
from kiara_runtime.bundle.manifest import Bundle
from kiara_runtime.errors import UserError
from kiara_runtime.loading import load
from kiara_runtime.tokens.tokenizer import Tokenizer


def _coarse(at_least: int) -> Callable[..., Blocks]:
    """A `round_to` with the precision of three bits for blocks of `at_least` values or more."""

    def rounded(grid: Grid, weight: np.ndarray) -> Blocks:
        made = round_to(grid, weight)
        if grid.sizes[0] < at_least:
            return made
        coarse = np.clip((made.values.astype(int) + 16) // 32 * 32, 0, 255).astype(np.uint8)
        return dataclasses.replace(made, values=coarse)

    return rounded


@pytest.mark.slow
def test_a_variant_that_loses_too_much_is_made_finer_or_left_out(
    run: Path, model: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kiara: Callable[..., Result]
) -> None:
    traced = kiara_export.candidates.makers.trace(model)  # once for a dozen graphs: it takes longer than all the rest
    monkeypatch.setattr(kiara_export.candidates.makers, "trace", lambda model, hidden: traced)
    monkeypatch.setattr(kiara_export.candidates.makers, "rounded", _coarse(32))
    finer = kiara("export", run, "--out", tmp_path / "finer")
    assert finer.exit_code == 0 and finer.stderr.count("int8 loses") == finer.stderr.count("finer rounding") == 2
    assert Bundle.open(tmp_path / "finer").variants == ["int8"]
    assert json.loads((tmp_path / "finer/receipt.json").read_text("utf-8"))["finer"] == {"int8": 2}
    assert "Remade with finer rounding: int8, twice" in (tmp_path / "finer/README.md").read_text("utf-8")
    assert load(tmp_path / "finer").generate("import", max_tokens=3, temperature=0.0).tokens

    monkeypatch.setattr(kiara_export.candidates.makers, "rounded", _coarse(0))
    strict = kiara("export", run, "--out", tmp_path / "strict", "--strict")
    assert strict.exit_code == 1 and "int8 loses" in strict.stderr and "no bundle was written" in strict.stderr
    assert "differ most from layer" in strict.stderr and not (tmp_path / "strict").exists()
    for options, variants in (((), ["fp32"]), (("--quantize", "int8", "--quantize", "fp16"), ["fp16"])):
        out = tmp_path / "-".join(variants)
        left = kiara("export", run, "--out", out, *options)
        assert left.exit_code == 0 and "leaving it out; --max-bpb-loss sets a higher limit" in left.stderr
        opened = Bundle.open(out)
        opened.check()
        assert opened.variants == variants and list(opened.manifest["left_out"]) == ["int8"]
        assert sorted(path.stem for path in (out / "onnx").iterdir()) == [Path(opened.variant_file(None)).stem]
        assert "Left out: int8, which loses" in (out / "README.md").read_text("utf-8")
    assert "Up to date" in kiara("export", run, "--out", tmp_path / "fp32").stderr
    assert kiara("export", run, "--out", tmp_path / "fp32", "--strict").exit_code == 1  # it lacks int8
    Bundle.open(tmp_path / "fp32").check()  # the old bundle is kept


@pytest.mark.parametrize("text", ["short", "x = 1\n" * 12])
def test_too_little_text_is_refused_before_the_work(
    text: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kiara: Callable[..., Result]
) -> None:
    monkeypatch.setattr(kiara_export.pipeline, "load_model", lambda folder: pytest.fail("it began"))
    (tmp_path / "text.txt").write_text(text)
    result = kiara("export", run, "--out", tmp_path / "bundle", "--text", tmp_path / "text.txt")
    assert result.exit_code == 1 and "are too few; use text of at least 65 tokens" in result.stderr


def test_a_flipped_byte_in_a_checkpoint_names_its_file(run: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(find_checkpoint(run), tmp_path / "checkpoint"))
    for path in sorted(folder.iterdir()):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        if path.name != "trainer_state.json":  # holds the hashes of the others
            path.write_bytes(data)
            with pytest.raises(UserError, match=path.name):
                load_model(folder)
            data[len(data) // 2] ^= 4
            path.write_bytes(data)
    load_model(folder)


@pytest.mark.slow
def test_figures_are_measured_on_the_given_text(
    run: Path, tmp_path: Path, corpus: Path, kiara: Callable[..., Result]
) -> None:
    def bits(name: str) -> float:
        assert kiara("export", run, "--out", tmp_path / "bundle", "--text", corpus / f"{name}.py").exit_code == 0
        return Bundle.open(tmp_path / "bundle").manifest["receipt"]["int8"]["bits_per_byte"]

    first, other, again = bits("bisect"), bits("csv"), bits("bisect")
    assert first == again != other


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("delete:model.safetensors", "neither a run with checkpoints nor a checkpoint"),
        ("delete:config.json", "there is no such file"),
        ("delete:tokenizer.json", "there is no such file"),
        ("cut:model.safetensors", "model.safetensors: damaged"),
        ("set:hidden_size=128", "config.json needs"),
        ("set:model_type=bert", "model_type 'bert'"),
        ("set:num_hidden_layers=3", "model.layers.2"),
        ("set:hidden_size=63", "config.json needs"),
        ("unset:hidden_size", "the field hidden_size is missing"),
        ("set:vocab_size=1024", "config.json needs"),
        ("set:vocab_size=256", "the tokenizer has 512"),
        ("unset:vocab_size", "vocab_size None"),
        ("state:{}", "trainer_state.json: the field step is missing"),
        ("state:{", "trainer_state.json: not JSON"),
    ],
)
def test_damaged_checkpoints_are_refused_with_the_reason(
    damage: str, expected: str, run: Path, tmp_path: Path, kiara: Callable[..., Result]
) -> None:
    import shutil

    folder = Path(shutil.copytree(find_checkpoint(run), tmp_path / "checkpoint"))
    kind, _, what = damage.partition(":")
    name, _, value = what.partition("=")
    if kind == "delete":
        (folder / what).unlink()
    elif kind == "state":
        (folder / "trainer_state.json").write_text(what, "utf-8")
    elif kind == "cut":
        (folder / what).write_bytes((folder / what).read_bytes()[:-100])
    else:
        values = json.loads((folder / "config.json").read_text("utf-8"))
        values.pop(name)
        if kind == "set":
            values[name] = int(value) if value.isdigit() else value
        (folder / "config.json").write_text(json.dumps(values), "utf-8")
        state = json.loads((folder / "trainer_state.json").read_text("utf-8"))
        (folder / "trainer_state.json").write_text(json.dumps({**state, "sha256": {}}), "utf-8")
    result = kiara("export", folder, "--out", tmp_path / "bundle", "--text", __file__)
    assert result.exit_code == 1
    assert expected in result.stderr
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (0.02, {"int8": 0.003, "int4": 0.02}),  # one bound for several variants never loosens a limit
        (0.001, {"int8": 0.001, "int4": 0.001}),
        ({"int4": 0.05}, {"int8": 0.003, "int4": 0.05}),
        ({}, {"int8": 0.003, "int4": 0.02}),
    ],
)
def test_a_loss_bound_for_int4_loosens_no_other_variant(loss: Any, expected: dict[str, float]) -> None:
    orders = Request(("int8", "int4"), max_bpb_loss=loss).orders()
    assert {order.variant.name: order.limits.bits_per_byte_loss for order in orders} == expected
    assert [order.limits.bits_per_byte_loss for order in Request(("int8",), max_bpb_loss=0.02).orders()] == [0.02]


def test_calibration_selection_and_report_use_three_texts(run: Path) -> None:
    checkpoint = find_checkpoint(run)
    request = Request(("int4",), max_bpb_loss=0.02)
    texts = texts_of(checkpoint, Tokenizer.load(checkpoint), request, request.orders())
    assert (
        texts.calibrate
        and texts.choose
        and len({texts.calibrate.sha256, texts.choose.sha256, texts.report.sha256}) == 3
    )
    assert texts.calibrate.tokens + texts.choose.tokens == trained_on(checkpoint).train.tokens
