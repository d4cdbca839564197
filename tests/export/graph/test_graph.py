"""Every variant's graph against PyTorch: float32 against the model, the others against the rounded weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from processors import exact_products

from kiara.checkpoints.checkpoint import find_checkpoint, load_model
from kiara.data.dataset import Dataset
from kiara.model.gpt import GPT
from kiara_export.graph import lower
from kiara_export.graph.onnx_file import save
from kiara_export.graph.trace import trace
from kiara_export.pipeline import architecture
from kiara_export.quantize.blocks import per_channel
from kiara_export.quantize.gptq import calibrate_int4
from kiara_export.quantize.kept import round_int8
from kiara_export.quantize.mixed import Mixed
from kiara_runtime.bundle.graph_file import external_files
from kiara_runtime.engine.session import Session
from kiara_runtime.verify.agreement import batch_of, in_batch, in_chunks

TABLE = "embed_tokens.weight"


@pytest.fixture(scope="module")
def model(run: Path) -> GPT:
    return load_model(find_checkpoint(run))[0]


@pytest.fixture(scope="module")
def ids(dataset: Dataset) -> np.ndarray:
    return dataset.val.window(1, 96)[:-1]


def _int8(name: str, weight: np.ndarray) -> object:
    return round_int8(weight)


def _logits(model: GPT, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(ids)[None])[0][0].numpy()


def _rounded(model: GPT, rounded: Callable[[str, np.ndarray], np.ndarray]) -> GPT:
    """A copy of `model` with `rounded` applied to every matrix."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.from_numpy(rounded(name, parameter.numpy())))
    return other


def _as_int8(name: str, weight: np.ndarray) -> np.ndarray:
    return round_int8(weight).weight()


def _as_dynamic(name: str, weight: np.ndarray) -> np.ndarray:
    values, scales = per_channel(weight)
    return round_int8(weight).weight() if name == TABLE else values * scales[:, None]


def _session(graph: ir.Model, model: GPT, folder: Path) -> Session:
    save(graph, folder / "model.onnx")
    return Session(folder / "model.onnx", architecture(model))


@pytest.fixture(scope="module")
def float32(model: GPT, tmp_path_factory: pytest.TempPathFactory) -> Session:
    return _session(lower.float32(trace(model)), model, tmp_path_factory.mktemp("graph"))


@pytest.mark.parametrize("chunk", [1, 2, 31, 96])
def test_float32_matches_pytorch_for_every_chunk_size(
    chunk: int, model: GPT, float32: Session, ids: np.ndarray
) -> None:
    np.testing.assert_allclose(in_chunks(float32, ids, chunk), _logits(model, ids), atol=1e-4)


def test_padded_batches_match_pytorch_and_equal_each_sequence_alone(
    model: GPT, float32: Session, ids: np.ndarray
) -> None:
    rows = batch_of(ids)
    assert len({len(row) for row in rows}) > 2
    for row, together in zip(rows, in_batch(float32, rows), strict=True):
        np.testing.assert_allclose(together, _logits(model, row), atol=1e-4)
        np.testing.assert_array_equal(together, in_batch(float32, [row])[0])


def test_last_token_logits_match_the_full_logits(float32: Session, ids: np.ndarray) -> None:
    """They are requested through the attention mask; single tokens and padded rows take other code paths."""
    for length in (1, 2, 50, 96):
        np.testing.assert_allclose(
            float32.decoder()(ids[:length].tolist()), in_chunks(float32, ids[:length], length)[-1]
        )
    rows = [ids[:40], ids[:7], ids[:40]]
    padded = np.stack([np.pad(row, (0, 40 - len(row))) for row in rows])
    last = float32.cache(3).run(padded, [len(row) for row in rows])
    for row, logits in zip(rows, last, strict=True):
        np.testing.assert_allclose(logits, float32.decoder()(row.tolist()), atol=1e-4)


@pytest.mark.parametrize(
    ("make", "oracle", "share"),
    [
        (lambda traced: lower.blocks(traced, _int8), _as_int8, 0.03),
        pytest.param(lambda traced: lower.dynamic(traced, _int8, {}), _as_dynamic, 0.03, marks=exact_products),
        (lower.half, lambda name, weight: weight.astype(np.float16).astype(np.float32), 0.01),
    ],
    ids=["int8", "int8-dynamic", "fp16"],
)
def test_a_variant_matches_pytorch_with_its_rounded_weights(
    make: Callable[[ir.Model], ir.Model],
    oracle: Callable[[str, np.ndarray], np.ndarray],
    share: float,
    model: GPT,
    ids: np.ndarray,
    tmp_path: Path,
) -> None:
    """The remaining difference is activation rounding, far smaller than that of weight rounding."""
    found = in_chunks(_session(make(trace(model)), model, tmp_path), ids, 96)
    expected = _logits(_rounded(model, oracle), ids)
    assert np.abs(found - expected).max() < share * np.abs(expected).max()


@pytest.mark.parametrize("promoted", [0, 3])
def test_int4_matches_pytorch_with_its_calibrated_weights(
    promoted: int, run: Path, dataset: Dataset, ids: np.ndarray, tmp_path: Path
) -> None:
    model, _ = load_model(find_checkpoint(run))
    traced = trace(model)
    mixed = Mixed(calibrate_int4(model, dataset.train, (32, 16), True))
    rounded = mixed.rounded(promoted)
    assert len(mixed.eight(promoted)) == promoted
    found = in_chunks(_session(lower.blocks(traced, rounded), model, tmp_path), ids, 96)
    original, _ = load_model(find_checkpoint(run))
    oracle = _rounded(original, lambda name, weight: rounded(f"model.{name}", weight).weight())
    expected = _logits(oracle, ids)
    assert np.abs(found - expected).max() < 0.04 * np.abs(expected).max()
    if not promoted:  # the calibrated model itself, except for its embedding table
        differing = [
            name for name, tensor in model.named_parameters() if not torch.equal(tensor, oracle.get_parameter(name))
        ]
        assert differing == [TABLE]


def test_the_graph_has_the_names_and_axes_that_other_runtimes_expect(bundle: Path, model: GPT) -> None:
    graph = onnx.load(str(bundle / "onnx/model_quantized.onnx")).graph
    shape = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    config = model.config
    assert shape["input_ids"] == ["batch_size", "sequence_length"]
    assert shape["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert shape["logits"] == ["batch_size", "logits_length", model.vocab_size]
    heads, size = config.num_key_value_heads, config.head_dim
    assert shape["past_key_values.1.value"] == ["batch_size", heads, "past_sequence_length", size]
    assert shape["present.1.value"] == ["batch_size", heads, "total_sequence_length", size]
    assert len(shape) == 3 + 4 * config.num_hidden_layers
    assert not [node for node in graph.node if node.metadata_props or node.doc_string]
    tables = [tensor for tensor in graph.initializer if list(tensor.dims)[:1] == [model.vocab_size]]
    assert [tensor.data_type for tensor in tables] == [onnx.TensorProto.UINT8]  # one table for embedding and head


@pytest.mark.parametrize(("mlp", "nodes"), [("relu2", 9), ("swiglu", 10)])
def test_a_layer_has_few_nodes(mlp: str, nodes: int, model: GPT) -> None:
    def count(layers: int) -> int:
        config = model.config.model_copy(update={"mlp": mlp, "num_hidden_layers": layers})
        other = GPT(config, model.vocab_size)
        other.initialise(0)
        return len(lower.blocks(trace(other.eval()), _int8).graph)

    assert count(3) - count(2) == nodes


def test_a_graph_file_written_in_pieces_equals_that_of_onnx_ir(model: GPT, tmp_path: Path) -> None:
    graph = lower.blocks(trace(model), _int8)
    save(graph, tmp_path / "ours.onnx")
    ir.save(graph, tmp_path / "theirs.onnx")
    ours, theirs = (onnx.load(str(tmp_path / name)) for name in ("ours.onnx", "theirs.onnx"))
    for message in (ours, theirs):
        tensors = sorted(message.graph.initializer, key=lambda tensor: tensor.name)
        values = [(tensor.name, onnx.numpy_helper.to_array(tensor).tobytes()) for tensor in tensors]
        message.graph.ClearField("initializer")
        message.graph.ClearField("value_info")
        if message is ours:
            first = values
    assert first == values
    assert ours.SerializeToString() == theirs.SerializeToString()
    assert external_files(tmp_path / "ours.onnx") == set()


def test_a_graph_too_large_for_protobuf_stores_its_weights_beside_it(
    model: GPT, ids: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kiara_export.graph.onnx_file.MAX_EMBEDDED_BYTES", 1000)
    session = _session(lower.blocks(trace(model), _int8), model, tmp_path)
    assert external_files(tmp_path / "model.onnx") == {"model.onnx_data"}
    assert in_chunks(session, ids, 96).shape == (96, model.vocab_size)
