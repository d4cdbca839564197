"""Export end to end: the graph against PyTorch, the int8 arithmetic against NumPy, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

import kiara_export.pipeline
import kiara_export.verify
from kiara import sizes
from kiara.checkpoint import find_checkpoint, load_model
from kiara.data import Dataset
from kiara.model import GPT
from kiara_export.quantize import quantize_blocks
from kiara_export.verify import Judge, verify_float32
from kiara_runtime.bundle import Bundle
from kiara_runtime.errors import UserError
from kiara_runtime.generate import load
from kiara_runtime.session import Session


@pytest.fixture(scope="module")
def model(run: Path) -> GPT:
    return load_model(find_checkpoint(run))[0]


@pytest.fixture(scope="module")
def sessions(bundle: Path) -> dict[str, Session]:
    opened = Bundle.open(bundle)
    return {name: Session(bundle / opened.variant_file(name), opened.architecture) for name in opened.variants}


def _by_chunks(session: Session, ids: np.ndarray, chunk: int) -> np.ndarray:
    decoder = session.decoder()
    return np.concatenate([decoder.append(ids[i : i + chunk]) for i in range(0, len(ids), chunk)])


@pytest.mark.parametrize("chunk", [1, 2, 31, 96])
def test_float32_graph_is_pytorch_along_every_path(
    chunk: int, model: GPT, sessions: dict[str, Session], dataset: Dataset
) -> None:
    ids = dataset.val.window(1, 96)[:-1]
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None])[0][0].numpy()
    np.testing.assert_allclose(_by_chunks(sessions["fp32"], ids, chunk), expected, atol=1e-4)


def test_int8_graph_is_the_dequantised_model(model: GPT, sessions: dict[str, Session], dataset: Dataset) -> None:
    """What remains is the rounding of activations: far below what rounding the weights changes."""
    ids = dataset.val.window(0, 96)[:-1]
    rounded, _ = load_model_like(model)
    with torch.no_grad():
        expected = rounded(torch.from_numpy(ids)[None])[0][0].numpy()
    difference = np.abs(_by_chunks(sessions["int8"], ids, 96) - expected)
    assert difference.max() < 0.03 * np.abs(expected).max()


def load_model_like(model: GPT) -> tuple[GPT, None]:
    """A copy of `model` with every matrix rounded as the export rounds it."""
    copy = GPT(model.config, model.vocab_size)
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in copy.parameters():
            if parameter.dim() == 2:
                values, scales = quantize_blocks(parameter.numpy())
                back = (values.astype(np.float32) - 128) * scales[..., None]
                parameter.copy_(torch.from_numpy(back.reshape(parameter.shape)))
    return copy.eval(), None


@given(
    st.integers(1, 5),
    st.sampled_from([16, 48, 32, 96, 64, 192]),
    st.integers(0, 99),
    st.sampled_from([0, 1e-30, 1, 1e6]),
)
@settings(max_examples=50)
def test_rounding_is_within_half_a_step(rows: int, columns: int, seed: int, scale: float) -> None:
    weight = (np.random.default_rng(seed).standard_normal((rows, columns)) * scale).astype(np.float32)
    values, scales = quantize_blocks(weight)
    back = ((values.astype(np.float32) - 128) * scales[..., None]).reshape(weight.shape)
    assert (np.abs(back - weight) <= 0.5001 * np.repeat(scales, values.shape[2], axis=1)).all()


def test_graph_has_the_names_axes_and_few_nodes_that_other_runtimes_expect(bundle: Path, model: GPT) -> None:
    graph = onnx.load(str(bundle / "onnx/model_quantized.onnx")).graph
    shape = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    config = model.config
    assert shape["input_ids"] == ["batch_size", "sequence_length"]
    assert shape["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert shape["logits"] == ["batch_size", "sequence_length", model.vocab_size]
    heads, size = config.num_key_value_heads, config.head_dim
    assert shape["past_key_values.1.value"] == ["batch_size", heads, "past_sequence_length", size]
    assert shape["present.1.value"] == ["batch_size", heads, "total_sequence_length", size]
    assert len(shape) == 3 + 4 * config.num_hidden_layers
    assert len(graph.node) <= 9 * config.num_hidden_layers + 12
    assert not [node for node in graph.node if node.metadata_props or node.doc_string]
    tables = [tensor for tensor in graph.initializer if list(tensor.dims)[:1] == [model.vocab_size]]
    assert sorted(tensor.data_type for tensor in tables) == [onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8]


def test_bundle_is_as_small_as_announced(bundle: Path, model: GPT) -> None:
    announced = sizes.bundle_bytes(model.config, model.vocab_size, 8)
    assert (bundle / "onnx/model_quantized.onnx").stat().st_size == pytest.approx(announced, abs=30_000)


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
    trace = kiara_export.pipeline.trace

    def wrong_trace(model: GPT) -> Any:
        with torch.no_grad():
            other, _ = load_model_like(model)
            other.norm.weight.mul_(1.01)
        return trace(other)

    monkeypatch.setattr(kiara_export.pipeline, "trace", wrong_trace)
    result = kiara("export", run, "--out", tmp_path / "bundle")
    assert result.exit_code == 1
    assert "prefill of the float32 graph differs from PyTorch" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_variant_that_loses_too_much_writes_no_bundle(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kiara: Callable[..., Result]
) -> None:
    def coarse(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, scales = quantize_blocks(weight)
        return (values - 128 + 16) // 32 * 32 + 128, scales

    monkeypatch.setattr("kiara_export.quantize.quantize_blocks", coarse)
    result = kiara("export", run, "--out", tmp_path / "bundle")
    assert result.exit_code == 1
    assert "int8 loses" in result.stderr and result.stderr.count("\n") <= 2
    assert not list(tmp_path.iterdir())


class Forgetful:
    """Right in one prefill, wrong as soon as a second pass needs the cache."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def decoder(self) -> Any:
        decoder = self.session.decoder()
        append = decoder.append

        def forgetting(ids: np.ndarray) -> np.ndarray:
            decoder.position = min(decoder.position, 3)
            return append(ids)

        decoder.append = forgetting  # type: ignore[method-assign]
        return decoder


def test_verifier_catches_a_cache_that_forgets(model: GPT, sessions: dict[str, Session], dataset: Dataset) -> None:
    with pytest.raises(UserError, match="single steps"):
        verify_float32(Forgetful(sessions["fp32"]), model, dataset.val)  # type: ignore[arg-type]
    judge = Judge(model, dataset.tokenizer, dataset.val)
    float32 = judge.measure_float32(sessions["fp32"], lambda tokens: None)
    quality = judge.measure("int8", sessions["int8"], float32, lambda tokens: None)
    assert quality.path_agreement > 0.97
    with pytest.raises(UserError, match="agree with its prefill"):
        judge.measure("int8", Forgetful(sessions["int8"]), float32, lambda tokens: None)  # type: ignore[arg-type]


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
    shown = [
        kiara("export", run, "--out", tmp_path / "bundle", "--text", corpus / f"{name}.py").stdout
        for name in ("bisect", "csv", "bisect")
    ]
    assert shown[0] == shown[2] != shown[1]


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
    result = kiara("export", folder, "--out", tmp_path / "bundle")
    assert result.exit_code == 1
    assert expected in result.stderr
    assert not (tmp_path / "bundle").exists()
