"""Weight-only int8: every matrix in blocks along its inputs, the tied embedding and LM head stored once.

A block of 64 inputs shares one float32 scale: 1.0625 bytes a weight. At blocks of up to 64 (not at 128)
ONNX Runtime computes each row of a batch by itself, so a request's logits do not depend on its company.
Imported matrices of other widths take blocks of 32 or 16.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from kiara_export.graph import CONTRIB_DOMAIN
from kiara_runtime.errors import UserError

BLOCK_SIZES = (64, 32, 16)
EMBEDDING = "model.embed_tokens.weight"  # of the traced module
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level: products in integers, the fastest on every CPU tried


def quantize_int8(model: ir.Model) -> None:
    """Replace, in place, MatMul by MatMulNBits and the embedding's Gather by GatherBlockQuantized."""
    tables: dict[str, tuple[ir.Value, ir.Value]] = {}
    for node in list(model.graph):
        if node.op_type == "MatMul":
            weight, transposed = _weight_of(node)
            _replace(model, node, [_matmul(model, node, weight, transposed, tables)])
    for node in list(model.graph):
        if node.op_type == "Gather" and node.inputs[0] is not None and node.inputs[0].name == EMBEDDING:
            table = _quantised(model, node.inputs[0], True, tables)
            _replace(model, node, _gather(model, node, *table))
    _drop_unused(model)


def quantize_blocks(weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Symmetric 8-bit blocks: weight (N, K) -> values (N, K / B, B) around 128, scales (N, K / B)."""
    rows, columns = weight.shape
    size = next((size for size in BLOCK_SIZES if columns % size == 0), None)
    if size is None:
        raise UserError(f"--quantize int8: a matrix has {columns} inputs, no multiple of 16; export it with none")
    blocks = weight.reshape(rows, columns // size, size)
    scales = np.abs(blocks).max(axis=2) / np.float32(127)
    steps = np.divide(blocks, scales[..., None], out=np.zeros_like(blocks), where=scales[..., None] > 0)
    return (np.rint(steps) + 128).astype(np.uint8), scales


def _weight_of(node: ir.Node) -> tuple[ir.Value, bool]:
    """The stored matrix of a MatMul, and whether it is stored as outputs by inputs."""
    value = node.inputs[1]
    assert value is not None
    producer = value.producer()
    if producer is not None and producer.op_type == "Transpose":
        assert producer.inputs[0] is not None
        return producer.inputs[0], True
    return value, False


def _matmul(
    model: ir.Model, node: ir.Node, weight: ir.Value, transposed: bool, tables: dict[str, tuple[ir.Value, ir.Value]]
) -> ir.Node:
    data, scales = _quantised(model, weight, transposed, tables)
    assert data.const_value is not None
    outputs, blocks, size = data.const_value.numpy().shape
    attributes = {"K": blocks * size, "N": outputs, "bits": 8, "block_size": size, "accuracy_level": INT8_ACTIVATIONS}
    inputs = [node.inputs[0], data, scales]
    return ir.node("MatMulNBits", inputs, attributes, domain=CONTRIB_DOMAIN, name=node.name)


def _quantised(
    model: ir.Model, weight: ir.Value, transposed: bool, tables: dict[str, tuple[ir.Value, ir.Value]]
) -> tuple[ir.Value, ir.Value]:
    """Values and scales of a stored matrix; one that is used twice is quantised, and stored, once."""
    assert weight.const_value is not None and weight.name is not None
    if weight.name not in tables:
        matrix = weight.const_value.numpy() if transposed else weight.const_value.numpy().T
        values, scales = quantize_blocks(np.ascontiguousarray(matrix, dtype=np.float32))
        tables[weight.name] = (
            _initializer(model, f"{weight.name}.int8", values),
            _initializer(model, f"{weight.name}.scales", scales),
        )
    return tables[weight.name]


def _gather(model: ir.Model, node: ir.Node, data: ir.Value, scales: ir.Value) -> list[ir.Node]:
    """Rows of the table that MatMulNBits reads too; its three axes want a scale shape of their own."""
    assert data.const_value is not None
    rows, blocks, size = data.const_value.numpy().shape
    reshaped = ir.node("Reshape", [scales, _initializer(model, "table_scales.shape", np.array([rows, blocks, 1]))])
    gathered = ir.node(
        "GatherBlockQuantized",
        [data, node.inputs[1], reshaped.outputs[0]],
        {"bits": 8, "block_size": size, "gather_axis": 0, "quantize_axis": 2},
        domain=CONTRIB_DOMAIN,
        name=node.name,
    )
    flat = _initializer(model, "embedding.shape", np.array([0, 0, blocks * size]))
    return [reshaped, gathered, ir.node("Reshape", [gathered.outputs[0], flat])]


def _initializer(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _replace(model: ir.Model, node: ir.Node, nodes: list[ir.Node]) -> None:
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, [node.outputs[0]], [nodes[-1].outputs[0]])


def _drop_unused(model: ir.Model) -> None:
    for node in list(model.graph):
        if node.op_type == "Transpose" and not node.outputs[0].uses():
            model.graph.remove(node, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses():
            del model.graph.initializers[name]
