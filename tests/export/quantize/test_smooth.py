"""int8-dynamic: smoothing factors cancel, and each row is rounded on its own."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from processors import exact_products

from kiara.config.model import ModelConfig
from kiara.data.dataset import Dataset
from kiara.model.block import Linear
from kiara.model.gpt import GPT
from kiara_export.graph import lower
from kiara_export.graph.onnx_file import save
from kiara_export.graph.trace import constant, trace
from kiara_export.pipeline import architecture
from kiara_export.quantize.blocks import per_channel
from kiara_export.quantize.kept import round_int8
from kiara_export.quantize.smooth import Factors, costly, smoothing
from kiara_runtime.engine.session import Session
from kiara_runtime.verify.agreement import in_chunks

BIASES = {"mlp_bias": True, "attention_bias": True, "attention_out_bias": True}
KINDS: dict[str, dict[str, Any]] = {
    "relu2": {"mlp": "relu2"},
    "swiglu": {"mlp": "swiglu", "tie_word_embeddings": False, **BIASES},
    "gelu": {"mlp": "gelu", "norm": "layer", "position": "learned", **BIASES},
}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, dataset: Dataset) -> GPT:
    """Untrained, with some outlier channels that have small weights, as in trained models."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16, "intermediate_size": 128, "context_length": 96}
    made = GPT(ModelConfig(**sizes, **KINDS[request.param]), dataset.tokenizer.vocab_size)
    made.initialise(0)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "bias")):
                parameter.normal_(0.0, 0.05)
        for layer in made.layers:
            layer.get_submodule("input_layernorm").get_parameter("weight")[::16] *= 30
            layer.get_submodule("self_attn.qkv_proj").get_parameter("weight")[:, ::16] /= 30
    return made.eval()


def _folded(model: GPT, factors: Factors) -> GPT:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, several in factors.items():
            for factor in several:
                other.get_parameter(name.removeprefix("model.")).mul_(torch.from_numpy(factor))
    return other


def _logits(model: GPT, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(ids)[None])[0][0].numpy()


def _rounded(model: GPT, factors: Factors, ids: np.ndarray, path: Path, kept: Collection[str] = ()) -> np.ndarray:
    save(lower.dynamic(trace(model), lambda _, weight: round_int8(weight), factors, kept), path)
    return in_chunks(Session(path, architecture(model)), ids, len(ids))


@exact_products
@pytest.mark.slow
def test_smoothing_changes_no_logit_and_lowers_the_rounding_error(model: GPT, dataset: Dataset, tmp_path: Path) -> None:
    ids, factors = dataset.val.window(1, 96)[:-1], smoothing(model, dataset.train)
    folded, expected = _folded(model, factors), _logits(model, ids)
    np.testing.assert_allclose(_logits(folded, ids), expected, atol=1e-4 * np.abs(expected).max())
    found = _rounded(model, factors, ids, tmp_path / "model.onnx")
    np.testing.assert_array_equal(found, _rounded(folded, {}, ids, tmp_path / "folded.onnx"))
    plain = _rounded(model, {}, ids, tmp_path / "plain.onnx")
    assert np.square(found - expected).mean() < 0.5 * np.square(plain - expected).mean()


@exact_products
@pytest.mark.slow
def test_a_matrix_too_sensitive_for_dynamic_rounding_keeps_its_blocks(
    model: GPT, dataset: Dataset, tmp_path: Path
) -> None:
    with torch.no_grad():
        model.norm.weight.mul_(8)  # untrained logits are so flat that rounding costs little
    assert costly(model, dataset.train, smoothing(model, dataset.train)) == set()
    ids, mlp = dataset.val.window(1, 96)[:-1], model.layers[1].get_submodule("mlp")
    up, down = (part for part in mlp.children() if isinstance(part, Linear))
    width = down.in_features
    with torch.no_grad():  # two outlier channels that cancel each other, except for rounding
        for first in range(0, up.out_features, width):
            for parameter in up.parameters():
                parameter[first + 1] = parameter[first] = 30 * parameter[first]
        down.weight[:, 0] = 10
        down.weight[:, 1] = -10
    factors = smoothing(model, dataset.train)
    kept = costly(model, dataset.train, factors)
    assert kept == {"model.layers.1.mlp.down_proj.weight"}
    expected = _logits(model, ids)
    errors = [
        np.square(_rounded(model, factors, ids, tmp_path / f"{len(names)}.onnx", names) - expected).mean()
        for names in (kept, set[str]())
    ]
    assert errors[0] < 0.6 * errors[1]  # values in the same block as the outliers still lose precision


def _product(matrix: np.ndarray) -> ort.InferenceSession:
    """x (B, S, in) times a matrix (out, in), as int8-dynamic does it."""
    rows = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B", "S", matrix.shape[1]]))
    graph = ir.Graph([rows], [], nodes=[], opset_imports={"": 21, lower.CONTRIB: 1}, name="product")
    model, (values, scales) = ir.Model(graph, ir_version=10), per_channel(matrix)
    weight = constant(model, "values", np.ascontiguousarray(values.T))
    nodes = lower.RowRounding(model).product(rows, weight, constant(model, "scales", scales))
    graph.extend(nodes)
    last = nodes[-1].outputs[0]
    last.name, last.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(last)
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


@exact_products
def test_each_row_is_rounded_on_its_own() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((48, 64)).astype(np.float32)
    rows = (rng.standard_normal((1, 40, 64)) * rng.lognormal(0, 2, (1, 40, 1))).astype(np.float32)
    session, (values, scales) = _product(matrix), per_channel(matrix)
    found = session.run(None, {"x": rows})[0]
    peak = np.abs(rows).max(-1, keepdims=True)
    whole = np.rint(rows / peak / np.float32(1 / 127)).astype(np.int64)
    np.testing.assert_allclose(found, (whole @ values.T.astype(np.int64)) * scales * peak / 127, rtol=1e-6)
    for i in (0, 7, 39):
        np.testing.assert_array_equal(session.run(None, {"x": rows[:, i : i + 1]})[0], found[:, i : i + 1])
    loud = rows.copy()
    loud[0, 3] *= 1e6
    loud[0, 5] = 0
    disturbed = session.run(None, {"x": loud})[0]
    others = [i for i in range(40) if i not in (3, 5)]
    np.testing.assert_array_equal(disturbed[:, others], found[:, others])
    np.testing.assert_array_equal(disturbed[0, 5], np.zeros(48))
