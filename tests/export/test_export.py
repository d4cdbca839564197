"""The export command end to end: receipts, replacement, budgets, and refusals that leave no files."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from exports import INT4, INT8

import kiara_export.candidates.makers
import kiara_export.pipeline
import kiara_export.quantize.gptq
import kiara_export.request
from kiara.model import sizes
from kiara.model.gpt import GPT
from kiara_runtime.bundle.manifest import Bundle
from kiara_runtime.bundle.variants import Limits
from kiara_runtime.errors import UserError
from kiara_runtime.loading import load


def test_the_bundle_size_matches_the_estimate(bundle: Path, model: GPT) -> None:
    announced = sizes.graph_bytes(model.config, model.vocab_size, INT8)
    assert (bundle / "onnx/model_quantized.onnx").stat().st_size == pytest.approx(announced, abs=30_000)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_loss_bound_promotes_only_as_many_matrices_as_it_needs(
    run: Path, tmp_path: Path, kiara: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kiara_export.quantize.gptq, "TOP", 3)  # two bits: at four this model loses almost nothing
    patient = dataclasses.replace(INT4, limits=Limits(0.02, 0.0, 0.0, 0.0, 0.0, 0.0))  # two bits change many tokens
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
        (("--calibration", "x.txt"), "applies only to int4 and int8-dynamic; add --quantize int4"),
        (("--quantize", "int4", "--budget", "forty"), "'forty' is not a size; use a form such as 40MB"),
        (("--quantize", "int4", "--budget", "0MB"), "'0MB' is not a size"),
        (("--max-bpb-loss", "0.5"), "'0.5' is not a percentage; use a form such as 0.5%"),
        (("--quantize", "none", "--max-bpb-loss", "1%"), "does not apply to float32; add --quantize int8"),
        (("--quantize", "int4", "--budget", "20kB"), "--budget 0.02MB: the smallest graph takes"),
        (("--text", "none.txt"), "none.txt: there is no such file or folder"),
        (("--check-with", "genai,llama"), "'llama' is not a known runtime; use one of genai, transformersjs"),
        (("--sign-key", "/none.pem"), "/none.pem: there is no such key file"),
    ],
)
def test_invalid_options_are_refused_before_the_work(
    options: tuple[str, ...], expected: str, run: Path, tmp_path: Path, kiara: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(kiara_export.candidates.makers, "trace", lambda model: pytest.fail("it began"))
    result = kiara("export", run, "--out", tmp_path / "bundle", *options)
    assert result.exit_code != 0 and expected in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_signed_export_verifies(
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


@pytest.mark.slow
def test_weights_too_large_for_protobuf_are_stored_beside_the_graph(
    run: Path, tmp_path: Path, kiara: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kiara_export.graph.onnx_file.MAX_EMBEDDED_BYTES", 1000)
    out = tmp_path / "bundle"
    assert kiara("export", run, "--out", out).exit_code == 0
    assert sorted(path.name for path in (out / "onnx").iterdir()) == [
        "model_quantized.onnx",
        "model_quantized.onnx_data",
        "model_quantized_int8_cache.onnx",
    ]
    hints = json.loads((out / "config.json").read_text("utf-8"))["transformers.js_config"]
    assert hints == {"use_external_data_format": {"model_quantized.onnx": 1}}
    for kv_cache in ("fp32", "int8"):  # the graph with an int8 cache reads the same file
        assert load(out, kv_cache=kv_cache).generate("import", max_tokens=3).tokens
    (out / "onnx/model_quantized.onnx_data").write_bytes(b"\0")
    with pytest.raises(UserError, match=r"model_quantized.onnx_data: damaged"):
        load(out)


def test_receipt_and_model_card_give_the_measured_figures(bundle: Path) -> None:
    receipt = json.loads((bundle / "receipt.json").read_text("utf-8"))
    int8 = receipt["variants"]["int8"]
    assert int8["bits_per_byte_loss"] == pytest.approx(
        int8["bits_per_byte"] / receipt["variants"]["fp32"]["bits_per_byte"] - 1
    )
    assert int8["bits_per_byte_loss"] < 0.003 and int8["top1_agreement"] > 0.97
    assert Bundle.open(bundle).manifest["receipt"] == receipt["variants"]
    assert f"{int8['bits_per_byte']:.4f}" in (bundle / "README.md").read_text("utf-8")
    assert str(Path.home()) not in (bundle / "kiara.json").read_text("utf-8")


def test_greedy_text_of_the_bundle_matches_the_checkpoint(
    bundle: Path, run: Path, kiara: Callable[..., Result], kiara_run: Callable[..., Result]
) -> None:
    options = ("-p", "class Reader:\n    def ", "--temperature", "0", "--max-tokens", "40")
    expected = kiara("generate", run, *options)
    found = kiara_run("generate", bundle, *options, "--variant", "fp32")
    assert expected.exit_code == found.exit_code == 0
    assert found.stdout == expected.stdout


@pytest.mark.slow
def test_export_replaces_a_bundle_but_no_other_folder(
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
    assert result.exit_code == 1 and "exists and is not a Kiara bundle" in result.stderr
    assert [path.name for path in foreign.iterdir()] == ["notes.txt"]


def test_a_graph_that_differs_from_pytorch_writes_no_bundle(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kiara: Callable[..., Result]
) -> None:
    trace = kiara_export.candidates.makers.trace

    def wrong_trace(model: GPT, hidden: bool) -> Any:
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
