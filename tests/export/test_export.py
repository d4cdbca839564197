"""The command from end to end: receipts, replacement, budgets, and refusals that leave nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

import kiara_export.candidates.makers
import kiara_export.pipeline
import kiara_export.quantize.gptq
import kiara_export.request
from kiara.checkpoints.checkpoint import find_checkpoint, load_model, trained_on
from kiara.model import sizes
from kiara.model.gpt import GPT
from kiara_export.quantize.blocks import Blocks, round_int8
from kiara_export.request import Request
from kiara_export.texts import texts_of
from kiara_runtime.bundle.manifest import Bundle
from kiara_runtime.bundle.variants import VARIANTS, Limits
from kiara_runtime.errors import UserError
from kiara_runtime.model import load
from kiara_runtime.tokens.tokenizer import Tokenizer

INT8, INT4 = VARIANTS[:2]


@pytest.fixture(scope="module")
def model(run: Path) -> GPT:
    return load_model(find_checkpoint(run))[0]


def test_bundle_is_as_small_as_announced(bundle: Path, model: GPT) -> None:
    announced = sizes.graph_bytes(model.config, model.vocab_size, INT8)
    assert (bundle / "onnx/model_quantized.onnx").stat().st_size == pytest.approx(announced, abs=30_000)


def test_every_variant_at_once_and_a_budget_between_int4_and_int8(
    run: Path, tmp_path: Path, kiara: Callable[..., Result], kiara_run: Callable[..., Result]
) -> None:
    every = ("int4", "int8", "fp16", "int8-dynamic", "none")
    options = [word for name in every for word in ("--quantize", name)]
    assert kiara("export", run, "--out", tmp_path / "every", *options).exit_code == 0
    figures = Bundle.open(tmp_path / "every").manifest["receipt"]
    assert list(figures) == ["int8", "int4", "int8-dynamic", "fp32", "fp16"]  # the default first
    assert figures["int4"]["size_bytes"] < figures["int8"]["size_bytes"] < figures["fp16"]["size_bytes"]
    for name in figures:
        assert load(tmp_path / "every", name).generate("import", max_tokens=3, temperature=0.0).tokens
    result = kiara_run("verify", tmp_path / "every", "--deep")
    assert result.exit_code == 0, result.stderr
    card = (tmp_path / "every/README.md").read_text("utf-8")
    assert all(f"| {name} |" in card for name in figures) and "receipt.png" in card
    assert (tmp_path / "every/receipt.png").read_bytes().startswith(b"\x89PNG")

    budget = (figures["int4"]["size_bytes"] + figures["int8"]["size_bytes"]) // 2
    result = kiara("export", run, "--out", tmp_path / "mixed", "--quantize", "int4", "--budget", f"{budget / 1000}kB")
    assert result.exit_code == 0, result.stderr
    mixed = Bundle.open(tmp_path / "mixed").manifest["receipt"]["int4"]
    assert figures["int4"]["size_bytes"] < mixed["size_bytes"] <= budget
    assert figures["int8"]["kl"] < mixed["kl"] < figures["int4"]["kl"]
    assert json.loads((tmp_path / "mixed/receipt.json").read_text("utf-8"))["eight_bit_matrices"]
    result = kiara("export", run, "--out", tmp_path / "small", "--quantize", "int4", "--budget", "20kB")
    assert result.exit_code == 1 and "--budget 0.02MB: the smallest graph takes" in result.stderr
    assert not (tmp_path / "small").exists()


def test_a_bound_on_the_loss_promotes_the_fewest_matrices_that_keep_it(
    run: Path, tmp_path: Path, kiara: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kiara_export.quantize.gptq, "TOP", 3)  # two bits, since this model hardly feels four
    patient = dataclasses.replace(INT4, limits=Limits(0.02, 0.0, 0.0, 0.0, 0.0, 0.0))  # two bits often choose otherwise
    monkeypatch.setattr(kiara_export.request, "VARIANTS", (patient,))
    options = ("--quantize", "int4", "--max-bpb-loss")
    assert kiara("export", run, "--out", tmp_path / "plain", *options, "90%").exit_code == 0
    loss = Bundle.open(tmp_path / "plain").manifest["receipt"]["int4"]["bits_per_byte_loss"]
    assert loss > 0.001
    result = kiara("export", run, "--out", tmp_path / "better", *options, f"{50 * loss}%")
    assert result.exit_code == 0, result.stderr
    better = Bundle.open(tmp_path / "better").manifest["receipt"]["int4"]
    assert better["bits_per_byte_loss"] <= loss / 2 + 2 * better["bits_per_byte_loss_error"]
    assert 0 < len(json.loads((tmp_path / "better/receipt.json").read_text("utf-8"))["eight_bit_matrices"]) < 8


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--quantize", "int3"), "'int3'"),
        (("--budget", "40MB"), "add --quantize int4"),
        (("--calibration", "x.txt"), "is only for int4 and int8-dynamic; add --quantize int4"),
        (("--quantize", "int4", "--budget", "forty"), "'forty' is no size; give one such as 40MB"),
        (("--quantize", "int4", "--budget", "0MB"), "'0MB' is no size"),
        (("--max-bpb-loss", "0.5"), "'0.5' is no percentage; give one such as 0.5%"),
        (("--quantize", "none", "--max-bpb-loss", "1%"), "float32 loses nothing; add --quantize int8"),
        (("--quantize", "int4", "--budget", "20kB"), "--budget 0.02MB: the smallest graph takes"),
        (("--text", "none.txt"), "none.txt: there is no such file or folder"),
        (("--check-with", "genai,llama"), "'llama' is no runtime; use genai, transformersjs"),
        (("--sign-key", "/none.pem"), "/none.pem: there is no such key file"),
    ],
)
def test_options_that_make_no_sense_are_one_line(
    options: tuple[str, ...], expected: str, run: Path, tmp_path: Path, kiara: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(kiara_export.candidates.makers, "trace", lambda model: pytest.fail("it began"))
    result = kiara("export", run, "--out", tmp_path / "bundle", *options)
    assert result.exit_code != 0 and expected in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_signed_export_is_signed(
    run: Path, tmp_path: Path, kiara: Callable[..., Result], kiara_run: Callable[..., Result]
) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (tmp_path / "key.pub").write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    out = tmp_path / "bundle"
    assert kiara("export", run, "--out", out, "--sign-key", tmp_path / "key.pem").exit_code == 0
    result = kiara_run("verify", out, "--public-key", tmp_path / "key.pub")
    assert result.exit_code == 0 and "signed by the owner" in result.stdout


def test_weights_past_a_protobuf_s_size_lie_beside_their_graph(
    run: Path, tmp_path: Path, kiara: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kiara_export.graph.onnx_file.MAX_EMBEDDED_BYTES", 1000)
    out = tmp_path / "bundle"
    assert kiara("export", run, "--out", out).exit_code == 0
    assert sorted(path.name for path in (out / "onnx").iterdir()) == [
        "model_quantized.onnx",
        "model_quantized.onnx_data",
    ]
    hints = json.loads((out / "config.json").read_text("utf-8"))["transformers.js_config"]
    assert hints == {"use_external_data_format": {"model_quantized.onnx": 1}}
    assert load(out).generate("import", max_tokens=3).tokens
    (out / "onnx/model_quantized.onnx_data").write_bytes(b"\0")
    with pytest.raises(UserError, match=r"model_quantized.onnx_data: damaged"):
        load(out)


def test_receipt_and_card_give_the_measured_figures(bundle: Path) -> None:
    receipt = json.loads((bundle / "receipt.json").read_text("utf-8"))
    int8 = receipt["variants"]["int8"]
    assert int8["bits_per_byte_loss"] == pytest.approx(
        int8["bits_per_byte"] / receipt["variants"]["fp32"]["bits_per_byte"] - 1
    )
    assert int8["bits_per_byte_loss"] < 0.003 and int8["top1_agreement"] > 0.97
    assert Bundle.open(bundle).manifest["receipt"] == receipt["variants"]
    assert f"{int8['bits_per_byte']:.4f}" in (bundle / "README.md").read_text("utf-8")
    assert str(Path.home()) not in (bundle / "kiara.json").read_text("utf-8")


def test_greedy_text_of_the_bundle_is_the_checkpoints(
    bundle: Path, run: Path, kiara: Callable[..., Result], kiara_run: Callable[..., Result]
) -> None:
    options = ("-p", "class Reader:\n    def ", "--temperature", "0", "--max-tokens", "40")
    expected = kiara("generate", run, *options)
    found = kiara_run("generate", bundle, *options, "--variant", "fp32")
    assert expected.exit_code == found.exit_code == 0
    assert found.stdout == expected.stdout


def test_export_again_replaces_the_bundle_and_only_a_bundle(
    run: Path, tmp_path: Path, corpus: Path, kiara: Callable[..., Result]
) -> None:
    out = tmp_path / "bundle"
    shown = []
    for options in ((), (), ("--text", corpus / "bisect.py")):
        result = kiara("export", run, "--out", out, *options)
        assert result.exit_code == 0, result.stderr
        shown.append((result.stdout, (out / "kiara.json").stat().st_ino))
    assert "bits per byte" in shown[0][0]
    assert shown[0] == shown[1] != shown[2]  # the second time it was up to date
    (out / "onnx/model_quantized.onnx").write_bytes(b"damaged")
    assert kiara("export", run, "--out", out).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert load(out).generate("import", max_tokens=3).tokens
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine", "utf-8")
    result = kiara("export", run, "--out", foreign)
    assert result.exit_code == 1 and "exists and is no bundle" in result.stderr
    assert [path.name for path in foreign.iterdir()] == ["notes.txt"]


def test_a_graph_that_departs_writes_no_bundle(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kiara: Callable[..., Result]
) -> None:
    trace = kiara_export.candidates.makers.trace

    def wrong_trace(model: GPT) -> Any:
        with torch.no_grad():
            other = copy.deepcopy(model)
            other.layers[1].input_layernorm.weight.mul_(1.1)
        return trace(other)

    monkeypatch.setattr(kiara_export.candidates.makers, "trace", wrong_trace)
    result = kiara("export", run, "--out", tmp_path / "bundle")
    assert result.exit_code == 1
    assert "of the float32 graph differs from PyTorch" in result.stderr
    assert "first in the keys or values of layer 1" in result.stderr
    assert not list(tmp_path.iterdir())


def _coarse(at_least: int) -> Callable[..., Blocks]:
    """Eight bits that are worth three, in blocks of `at_least` and more."""

    def rounded(weight: np.ndarray, sizes: tuple[int, ...] = INT8.blocks) -> Blocks:
        made = round_int8(weight, sizes)
        if sizes[0] < at_least:
            return made
        coarse = np.clip((made.values.astype(int) + 16) // 32 * 32, 0, 255).astype(np.uint8)
        return dataclasses.replace(made, values=coarse)

    return rounded


def test_a_variant_that_loses_too_much_is_made_finer_or_left_out(
    run: Path, model: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kiara: Callable[..., Result]
) -> None:
    traced = kiara_export.candidates.makers.trace(
        model
    )  # once for a dozen of graphs: it takes longer than all the rest
    monkeypatch.setattr(kiara_export.candidates.makers, "trace", lambda model: traced)
    monkeypatch.setattr(kiara_export.candidates.makers, "round_int8", _coarse(32))
    finer = kiara("export", run, "--out", tmp_path / "finer")
    assert finer.exit_code == 0 and finer.stderr.count("int8 loses") == finer.stderr.count("made again, finer") == 2
    assert Bundle.open(tmp_path / "finer").variants == ["int8"]
    assert json.loads((tmp_path / "finer/receipt.json").read_text("utf-8"))["finer"] == {"int8": 2}
    assert "since it lost too much: int8, twice" in (tmp_path / "finer/README.md").read_text("utf-8")
    assert load(tmp_path / "finer").generate("import", max_tokens=3, temperature=0.0).tokens

    monkeypatch.setattr(kiara_export.candidates.makers, "round_int8", _coarse(0))
    strict = kiara("export", run, "--out", tmp_path / "strict", "--strict")
    assert strict.exit_code == 1 and "int8 loses" in strict.stderr and "no bundle was written" in strict.stderr
    assert "depart most from layer" in strict.stderr and not (tmp_path / "strict").exists()
    for options, variants in (((), ["fp32"]), (("--quantize", "int8", "--quantize", "fp16"), ["fp16"])):
        out = tmp_path / "-".join(variants)
        left = kiara("export", run, "--out", out, *options)
        assert left.exit_code == 0 and "it is left out; more is allowed with --max-bpb-loss" in left.stderr
        opened = Bundle.open(out)
        opened.check()
        assert opened.variants == variants and list(opened.manifest["left_out"]) == ["int8"]
        assert sorted(path.stem for path in (out / "onnx").iterdir()) == [Path(opened.variant_file(None)).stem]
        assert "Left out: int8, which loses" in (out / "README.md").read_text("utf-8")
    assert "Up to date" in kiara("export", run, "--out", tmp_path / "fp32").stderr
    assert kiara("export", run, "--out", tmp_path / "fp32", "--strict").exit_code == 1  # what lacks int8 is not that
    Bundle.open(tmp_path / "fp32").check()  # and is kept


@pytest.mark.parametrize("text", ["short", "x = 1\n" * 12])
def test_what_cannot_be_judged_is_found_before_the_work(
    text: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kiara: Callable[..., Result]
) -> None:
    monkeypatch.setattr(kiara_export.pipeline, "load_model", lambda folder: pytest.fail("it began"))
    (tmp_path / "text.txt").write_text(text)
    result = kiara("export", run, "--out", tmp_path / "bundle", "--text", tmp_path / "text.txt")
    assert result.exit_code == 1 and "are too few; name text of 65 at least" in result.stderr


def test_any_flipped_byte_of_a_checkpoint_is_refused_by_name(run: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(find_checkpoint(run), tmp_path / "checkpoint"))
    for path in sorted(folder.iterdir()):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        if path.name != "trainer_state.json":  # which records the others
            path.write_bytes(data)
            with pytest.raises(UserError, match=path.name):
                load_model(folder)
            data[len(data) // 2] ^= 4
            path.write_bytes(data)
    load_model(folder)


def test_figures_are_of_the_text_that_was_given(
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
        ("set:hidden_size=128", "where config.json asks for"),
        ("set:model_type=bert", "model_type 'bert'"),
        ("set:num_hidden_layers=3", "model.layers.2"),
        ("set:hidden_size=63", "where config.json asks for"),
        ("unset:hidden_size", "the field hidden_size is missing"),
        ("set:vocab_size=1024", "where config.json asks for"),
        ("set:vocab_size=256", "the tokenizer has 512"),
        ("unset:vocab_size", "vocab_size None"),
        ("state:{}", "trainer_state.json: the field step is missing"),
        ("state:{", "trainer_state.json: not JSON"),
    ],
)
def test_damaged_checkpoints_are_refused_by_name(
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
        (0.02, {"int8": 0.003, "int4": 0.02}),  # never looser for one that stands beside others
        (0.001, {"int8": 0.001, "int4": 0.001}),
        ({"int4": 0.05}, {"int8": 0.003, "int4": 0.05}),
        ({}, {"int8": 0.003, "int4": 0.02}),
    ],
)
def test_what_int4_may_lose_loosens_no_other(loss: Any, expected: dict[str, float]) -> None:
    orders = Request(("int8", "int4"), max_bpb_loss=loss).orders()
    assert {order.variant.name: order.limits.bits_per_byte_loss for order in orders} == expected
    assert [order.limits.bits_per_byte_loss for order in Request(("int8",), max_bpb_loss=0.02).orders()] == [0.02]


def test_three_texts_calibrate_choose_and_report(run: Path) -> None:
    checkpoint = find_checkpoint(run)
    request = Request(("int4",), max_bpb_loss=0.02)
    texts = texts_of(checkpoint, Tokenizer.load(checkpoint), request, request.orders())
    assert (
        texts.calibrate
        and texts.choose
        and len({texts.calibrate.sha256, texts.choose.sha256, texts.report.sha256}) == 3
    )
    assert texts.calibrate.tokens + texts.choose.tokens == trained_on(checkpoint).train.tokens
